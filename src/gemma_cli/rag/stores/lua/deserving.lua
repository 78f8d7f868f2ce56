-- The ids that `promote` would move out of a tier, highest relevance first. ARGV: now, rules, the tier, tiers from the top
-- down.
return run(function()
  now = tonumber(ARGV[1])
  local rules, wanted, entering = cjson.decode(ARGV[2]), tonumber(ARGV[3]), {}
  for i = 4, #ARGV do
    local tier = tonumber(ARGV[i])
    local target = rules.tiers[tier + 1].to
    if target >= 0 then
      local ids, staying = {}, entering[target] or 0
      for j, memory in ipairs(ready(tier, target, rules, staying, {})) do ids[j] = memory.id end
      if tier == wanted then return ids end
      entering[target] = staying + #ids
    end
  end
  return {}
end)
