-- Adds memories and removes those that they replace. ARGV: generation, nonce, now, rules (JSON), how many ids are
-- replaced, those ids, how many count as just put, those ids; then for each memory: id, numbers (packed, without row and
-- sequence), how many more arguments it has, and these, its other fields with their names.
return run(function()
  expect(ARGV[1])
  local nonce, rules = ARGV[2], cjson.decode(ARGV[4])
  if repeated(nonce) then return 0 end
  now = tonumber(ARGV[3])
  local replaced = tonumber(ARGV[5])
  local kept = tonumber(ARGV[6 + replaced])
  local given, at = {}, 7 + replaced + kept
  while at <= #ARGV do
    local size = tonumber(ARGV[at + 2])
    local memory = unpacked(ARGV[at], ARGV[at + 1])
    memory.fields = fields_of(ARGV, at + 3, at + 2 + size)
    given[#given + 1] = memory
    at = at + 3 + size
  end
  for i = 6, 5 + replaced do
    if alive(planned(ARGV[i])) then remove(ARGV[i]) end
  end
  local row, fresh, tiers, seen = number('next-row'), {}, {}, {}
  for i = 7 + replaced, 6 + replaced + kept do
    if alive(planned(ARGV[i])) then fresh[ARGV[i]] = true end
  end
  for _, memory in ipairs(given) do
    local old = planned(memory.id)
    if old and (old.new or alive(old)) then refuse('TAKEN', memory.id) end
    -- The id of one that has expired is free, swept or not.
    if not plan.left[memory.id] then remove(memory.id) end
    memory.row = row
    row = row + 1
    add(memory)
    fresh[memory.id] = true
    if not seen[memory.tier] then
      seen[memory.tier] = true
      tiers[#tiers + 1] = memory.tier
    end
  end
  for _, tier in ipairs(tiers) do make_room(tier, rules, fresh) end
  plan.reembedding = redis.call('HEXISTS', K.meta, 'next-model') == 1
  carry_out(nonce)
  redis.call('HSET', K.meta, 'next-row', row)
  return 0
end)
