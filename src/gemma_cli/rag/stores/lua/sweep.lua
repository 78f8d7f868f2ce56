-- Removes what has expired. ARGV: generation, nonce, now. Returns how many.
return run(function()
  expect(ARGV[1])
  local before = repeated(ARGV[2])
  if before then return before end
  now = tonumber(ARGV[3])
  local swept = sweep()
  carry_out(ARGV[2], swept)
  return swept
end)
