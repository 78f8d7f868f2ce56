-- Changes a memory that is still as the caller read it. ARGV: generation, nonce, now, id, its sequence as read, its new
-- numbers (packed; count and times of access are left as they are), "1" where its text is another, "1" where its token
-- codes are void, how many fields go, their names, then the fields that come with their names. Returns the numbers as
-- they are now, or 0 where it is another by now, or false where it is gone.
return run(function()
  expect(ARGV[1])
  now = tonumber(ARGV[3])
  if repeated(ARGV[2]) then
    local memory = load(ARGV[4])
    return memory and packed(memory)
  end
  local id, key = ARGV[4], memory_key(ARGV[4])
  local old = load(id)
  if not alive(old) then return false end
  if old.sequence ~= tonumber(ARGV[5]) then return 0 end
  local memory = unpacked(id, ARGV[6])
  memory.row, memory.tier, memory.count, memory.accessed = old.row, old.tier, old.count, old.accessed
  local rewritten, recoded = ARGV[7] == '1', ARGV[8] == '1'
  local links, content = {}, nil
  if rewritten then
    links, content = redis.call('SMEMBERS', links_key(id)), redis.call('HGET', key, 'content')
    for _, link in ipairs(links) do
      for _, other in ipairs(cjson.decode(link)) do redis.call('EXISTS', links_key(other)) end
    end
  end
  order_of(memory.tier) -- before the first write
  memory.sequence = log_change(ARGV[2], {id}, {}, false)
  local going, at = {}, 10 + tonumber(ARGV[9])
  for i = 10, at - 1 do going[#going + 1] = ARGV[i] end
  if #going > 0 then redis.call('HDEL', key, unpack(going)) end
  redis.call('HSET', key, 's', packed(memory), unpack(fields_of(ARGV, at, #ARGV)))
  if memory.pinned ~= old.pinned then redis.call('HINCRBY', K.meta, 'pinned:' .. memory.tier, memory.pinned - old.pinned) end
  place(memory)
  set_expiry(memory)
  flush()
  if rewritten then
    unlink(id, links)
    forget_text(content)
    redis.call('ZADD', K.uncompared, memory.row, id)
    if redis.call('HEXISTS', K.meta, 'next-model') == 1 then redis.call('ZADD', K.unembedded, memory.row, id) end
  end
  if recoded then
    redis.call('HDEL', key, field_name('tokens'))
    redis.call('ZADD', K.untokened, memory.row, id)
  end
  return packed(memory)
end)
