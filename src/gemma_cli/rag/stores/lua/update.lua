-- Changes a memory that is still as the caller read it; where its tier is another, makes room there. ARGV: generation,
-- nonce, now, rules, id, its sequence as read, its new numbers (packed; row, count and time of access are left as they
-- are), "1" where its text is another, "1" where its token codes are void, how many fields go, their names, then the
-- fields that come with their names. Returns the numbers as they are now, or 0 where it is another by now, or false where
-- it is gone.
return run(function()
  expect(ARGV[1])
  now = tonumber(ARGV[3])
  if repeated(ARGV[2]) then
    local memory = load(ARGV[5])
    return memory and packed(memory)
  end
  local id, key = ARGV[5], memory_key(ARGV[5])
  local old = load(id)
  if not alive(old) then return false end
  if old.sequence ~= tonumber(ARGV[6]) then return 0 end
  local memory = unpacked(id, ARGV[7])
  memory.row, memory.count, memory.accessed = old.row, old.count, old.accessed
  local rewritten, recoded = ARGV[8] == '1', ARGV[9] == '1'
  local links, content, reembedding = {}, nil, false
  if rewritten then
    links, content = neighbours(id), redis.call('HGET', key, 'content')
    reembedding = redis.call('HEXISTS', K.meta, 'next-model') == 1
  end
  local going, at = {}, 11 + tonumber(ARGV[10])
  for i = 11, at - 1 do going[#going + 1] = ARGV[i] end
  memory.fields = fields_of(ARGV, at, #ARGV)
  change(old, memory)
  if memory.tier ~= old.tier then make_room(memory.tier, cjson.decode(ARGV[4]), {[id] = true}) end
  carry_out(ARGV[2])
  if #going > 0 then redis.call('HDEL', key, unpack(going)) end
  if rewritten then
    unlink(id, links)
    forget_text(content)
    redis.call('ZADD', K.uncompared, memory.row, id)
    if reembedding then redis.call('ZADD', K.unembedded, memory.row, id) end
  end
  if recoded then
    redis.call('HDEL', key, field_name('tokens'))
    redis.call('ZADD', K.untokened, memory.row, id)
  end
  return packed(memory)
end)
