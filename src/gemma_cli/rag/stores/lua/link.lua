-- Keeps near-duplicates. ARGV: generation, nonce, how many ids were compared, those ids, then two ids and their cosine, again and
-- again. Returns how many links are new.
return run(function()
  expect(ARGV[1])
  local compared, made, pairs_, rows = tonumber(ARGV[3]), 0, {}, {}
  for i = 4 + compared, #ARGV, 3 do
    local one, other = load(ARGV[i]), load(ARGV[i + 1])
    if one and other and one.row ~= other.row then
      if one.row < other.row then one, other = other, one end
      redis.call('EXISTS', links_key(one.id), links_key(other.id))
      pairs_[#pairs_ + 1] = {one.id, other.id, ARGV[i + 2]}
    end
  end
  for _, pair in ipairs(pairs_) do
    local link = cjson.encode({pair[1], pair[2]})
    if redis.call('ZADD', K.links, 'NX', pair[3], link) == 1 then
      made = made + 1
      redis.call('SADD', links_key(pair[1]), link)
      redis.call('SADD', links_key(pair[2]), link)
    end
  end
  for i = 4, 3 + compared do redis.call('ZREM', K.uncompared, ARGV[i]) end
  return made
end)
