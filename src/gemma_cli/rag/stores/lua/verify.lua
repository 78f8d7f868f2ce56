-- Looks a namespace through. Returns the first thing that is wrong, or "".
return run(function()
  local counts, pinned, total = {}, {}, 0
  for tier = 0, TIERS - 1 do counts[tier], pinned[tier] = 0, 0 end
  for _, id in ipairs(redis.call('ZRANGE', K.created, 0, -1)) do
    local memory = load(id)
    if memory then
      local there = redis.call('HMGET', memory_key(id), 'content', field_name('vector'), field_name('code'), 'terms')
      for i, name in ipairs({'text', 'vector', 'code', 'words'}) do
        if not there[i] then return 'a memory without its ' .. name end
      end
      local ranked = score(standing_key(memory.tier), id) and score(age_key(memory.tier), id)
      if (memory.pinned == 0) ~= (ranked and true or false) then return 'a memory that its tier does not know' end
      local order = order_of(memory.tier)
      if order and ranked then
        local at = score(order_key(memory.tier), id)
        if not at or math.abs(at - order_score(order, standing(memory), memory.created)) > RANK_ROUNDING then
          return 'a memory with a wrong rank in its tier'
        end
      end
      if (memory.expires < NEVER) ~= (score(K.expiry, id) and true or false) then return 'a memory without its end' end
      pinned[memory.tier] = pinned[memory.tier] + memory.pinned
    else
      -- The server drops what has expired; anything else it must not.
      memory = score(K.expiry, id) and dropped(id)
      if not memory then return 'an id without a memory (does the server evict keys?)' end
    end
    counts[memory.tier] = counts[memory.tier] + 1
  end
  for tier = 0, TIERS - 1 do
    if counts[tier] ~= tier_count(tier) then return 'a tier with a wrong count' end
    local ordered = order_of(tier) and redis.call('ZCARD', standing_key(tier)) or 0
    if ordered ~= redis.call('ZCARD', order_key(tier)) then return 'an order that is not that of its tier' end
    if pinned[tier] ~= pinned_count(tier) then return 'a tier with a wrong count of pinned memories' end
  end
  return ''
end)
