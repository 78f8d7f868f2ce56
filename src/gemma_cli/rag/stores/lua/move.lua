-- Moves memories into a tier. ARGV: generation, nonce, now, rules, the tier, ids. Returns how many moved.
return run(function()
  expect(ARGV[1])
  local before = repeated(ARGV[2])
  if before then return before end
  now = tonumber(ARGV[3])
  local rules, to = cjson.decode(ARGV[4]), tonumber(ARGV[5])
  local fresh, moved = {}, 0
  for i = 6, #ARGV do
    local memory = planned(ARGV[i])
    if alive(memory) and memory.tier ~= to then
      move(memory, to, rules)
      fresh[memory.id] = true
      moved = moved + 1
    end
  end
  if moved > 0 then make_room(to, rules, fresh) end
  carry_out(ARGV[2], moved)
  return moved
end)
