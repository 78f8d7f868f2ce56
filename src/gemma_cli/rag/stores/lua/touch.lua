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
  for _, memory in ipairs(touched) do
    redis.call('HSET', memory_key(memory.id), 's', packed(memory))
    if memory.pinned == 0 then redis.call('ZADD', standing_key(memory.tier), standing(memory), memory.id) end
  end
  return #touched
end)
