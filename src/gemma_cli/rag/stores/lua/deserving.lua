-- The ids that `promote` would move out of a tier, highest relevance first. ARGV: now, rules, the tier.
return run(function()
  now = tonumber(ARGV[1])
  local ids = {}
  for i, candidate in ipairs(deserving(tonumber(ARGV[3]), cjson.decode(ARGV[2]), {})) do ids[i] = candidate.memory.id end
  return ids
end)
