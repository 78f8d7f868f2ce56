-- Counts accesses. ARGV: generation, now, then an id and how many, again and again.
return run(function()
  expect(ARGV[1])
  now = tonumber(ARGV[2])
  local touched = {}
  for i = 3, #ARGV, 2 do
    local memory = load(ARGV[i])
    if memory then
      memory.count = memory.count + tonumber(ARGV[i + 1])
      memory.accessed = math.max(memory.accessed, now)
      touched[#touched + 1] = memory
    end
  end
  order_of(0) -- before the first write
  for _, memory in ipairs(touched) do
    redis.call('HSET', memory_key(memory.id), 's', packed(memory))
    if memory.pinned == 0 then place(memory) end
  end
  flush()
  return #touched
end)
