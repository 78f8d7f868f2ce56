-- Sweeps, then moves up what deserves it. ARGV: generation, nonce, now, rules, tiers from the top down. Returns from, to
-- and how many, three numbers a move, as a JSON list.
return run(function()
  expect(ARGV[1])
  local before = repeated(ARGV[2])
  if before then return before end
  now = tonumber(ARGV[3])
  local rules = cjson.decode(ARGV[4])
  sweep()
  local moves, moved = {}, {}
  for i = 5, #ARGV do
    local tier = tonumber(ARGV[i])
    local target = rules.tiers[tier + 1].to
    if target >= 0 then
      local ids = promote(tier, target, rules, moved)
      if #ids > 0 then
        moves[#moves + 1], moves[#moves + 2], moves[#moves + 3] = tier, target, #ids
        -- Room made in a tier for later ones must not send earlier ones a second tier up.
        for _, id in ipairs(ids) do moved[id] = true end
      end
    end
  end
  local result = cjson.encode(moves)
  carry_out(ARGV[2], result)
  return result
end)
