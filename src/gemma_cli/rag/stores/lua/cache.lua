-- Keeps vectors of texts. ARGV: generation, how many to keep in all, then a digest and a vector, again and again.
return run(function()
  expect(ARGV[1])
  for i = 3, #ARGV, 2 do
    redis.call('HSET', K.embeddings, ARGV[i], ARGV[i + 1])
    redis.call('ZADD', K.ages, redis.call('HINCRBY', K.meta, 'cached', 1), ARGV[i])
  end
  local excess = redis.call('ZCARD', K.ages) - tonumber(ARGV[2])
  if excess > 0 then
    for _, digest in ipairs(redis.call('ZRANGE', K.ages, 0, excess - 1)) do redis.call('HDEL', K.embeddings, digest) end
    redis.call('ZREMRANGEBYRANK', K.ages, 0, excess - 1)
  end
  return 1
end)
