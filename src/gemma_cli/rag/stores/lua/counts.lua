-- How many living memories each tier holds. ARGV: now.
return run(function()
  now = tonumber(ARGV[1])
  local counts = {}
  for tier = 0, TIERS - 1 do counts[tier + 1] = tier_count(tier) end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.expiry, '-inf', now)) do
    local memory = load(id) or dropped(id)
    if memory then counts[memory.tier + 1] = counts[memory.tier + 1] - 1 end
  end
  return counts
end)
