-- Removes memories. ARGV: generation, nonce, now, ids. Returns how many there were.
return run(function()
  expect(ARGV[1])
  local before = repeated(ARGV[2])
  if before then return before end
  now = tonumber(ARGV[3])
  local removed = 0
  for i = 4, #ARGV do
    if alive(planned(ARGV[i])) and remove(ARGV[i]) then removed = removed + 1 end
  end
  carry_out(ARGV[2], removed)
  return removed
end)
