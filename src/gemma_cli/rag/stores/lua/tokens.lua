-- Keeps token codes. ARGV: generation, nonce, then id, row, digest of what was encoded and codes, again and again.
return run(function()
  expect(ARGV[1])
  local kept = {}
  for i = 3, #ARGV, 4 do
    local memory = load(ARGV[i])
    if memory and memory.row == tonumber(ARGV[i + 1]) then
      local text = redis.call('HMGET', memory_key(memory.id), 'actor', 'content')
      local digest = redis.sha1hex(ARGV[1] .. (text[1] and '\1' .. text[1] or '') .. '\0' .. text[2])
      if string.sub(digest, 1, 12) == ARGV[i + 2] then kept[#kept + 1] = {memory.id, ARGV[i + 3]} end
    end
  end
  if #kept == 0 then return 0 end
  -- Answers may come in another order from now on, though the index has nothing to take in.
  local coded = {}
  for i, pair in ipairs(kept) do coded[i] = pair[1] end
  log_change(ARGV[2], {}, {}, false, '', coded)
  for _, pair in ipairs(kept) do
    redis.call('HSET', memory_key(pair[1]), field_name('tokens'), pair[2])
    redis.call('ZREM', K.untokened, pair[1])
  end
  return #kept
end)
