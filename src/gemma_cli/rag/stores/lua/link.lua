-- Keeps near-duplicates. ARGV: generation, nonce, how many memories there are, how many of them, the first ones, were
-- compared; of each memory its id and the digest of its vector; then the places of two of them and their cosine, again
-- and again. What is gone, or has another vector meanwhile, is left out. Returns how many links are new.
return run(function()
  expect(ARGV[1])
  local total, compared, made, memories, pairs_ = tonumber(ARGV[3]), tonumber(ARGV[4]), 0, {}, {}
  for place = 1, total do
    local id = ARGV[3 + 2 * place]
    local vector = redis.call('HGET', memory_key(id), field_name('vector'))
    if vector and redis.sha1hex(vector) == ARGV[4 + 2 * place] then memories[place] = load(id) end
  end
  for i = 5 + 2 * total, #ARGV, 3 do
    local one, other = memories[tonumber(ARGV[i])], memories[tonumber(ARGV[i + 1])]
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
  for place = 1, compared do
    if memories[place] then redis.call('ZREM', K.uncompared, memories[place].id) end
  end
  return made
end)
