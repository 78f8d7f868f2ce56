-- The order of a tier in which its memories leave: ids by cohort and rank, and in `meta` what the ranks were made with.
-- docs/adr/0011-eviction.md has the idea. A tier has none until it makes room for the first time.

local orders

-- Those of all tiers, false where there is none.
local function order_of(tier)
  if not orders then
    orders = {}
    local fields = {}
    for i = 1, TIERS do fields[i] = 'order:' .. i - 1 end
    for i, stored in ipairs(redis.call('HMGET', K.meta, unpack(fields))) do
      orders[i - 1] = false
      if stored then
        local size = #stored / 8
        local values = {struct.unpack('<' .. string.rep('d', size), stored)}
        local order = {at = values[1], decay = values[2], in_vain = values[3], newest = {}, floor = {}}
        for at = 4, size, 2 do
          order.newest[#order.newest + 1], order.floor[#order.floor + 1] = values[at], values[at + 1]
        end
        orders[i - 1] = order
      end
    end
  end
  return orders[tier]
end

local function note_order(tier, order)
  local values = {order.at, order.decay, order.in_vain}
  for cohort, newest in ipairs(order.newest) do
    values[#values + 1], values[#values + 2] = newest, order.floor[cohort]
  end
  redis.call('HSET', K.meta, 'order:' .. tier, struct.pack('<' .. string.rep('d', #values), unpack(values)))
end

-- Recency at the reference, beyond it too, where it is more than it can be.
local function recency_then(order, created)
  return RECENCY_WEIGHT * math.exp(math.min(order.decay * (created - order.at) / DAY, REACH))
end

local function order_score(order, stands, created)
  local cohort = 1
  while created > order.newest[cohort] do cohort = cohort + 1 end
  return APART * cohort + stands + recency_then(order, created), cohort
end

-- The same for one that comes into the order.
local function entering_score(order, stands, created)
  local rank, cohort = order_score(order, stands, created)
  if rank < order.floor[cohort] then order.floor[cohort], order.changed = rank, true end
  return rank
end

-- Gathers the `wanted` of lowest relevance; `worst` is one that the last of them is not above.
local function gathering(wanted)
  local best = {worst = math.huge}
  local function lower(one, other)
    if one.relevance ~= other.relevance then return one.relevance < other.relevance end
    if one.id == other.id then return false end
    local mine, theirs = planned(one.id), planned(other.id)
    return (mine and mine.row or 0) < (theirs and theirs.row or 0)
  end
  function best.settle()
    table.sort(best, lower)
    for i = #best, wanted + 1, -1 do best[i] = nil end
    if #best == wanted then best.worst = best[wanted].relevance end
  end
  function best.add(id, relevance)
    if relevance > best.worst then return end
    best[#best + 1] = {id = id, relevance = relevance}
    if #best >= wanted * 1.25 then best.settle() end
  end
  return best
end

-- An order for the present time, from the other sorted sets, whole; it is written when the plan is.
local function new_order(tier, decay)
  local order = {at = now, decay = decay, in_vain = 0, newest = {}, floor = {}, made = {}, changed = true}
  local standings = {}
  local listed = redis.call('ZRANGE', standing_key(tier), 0, -1, 'WITHSCORES')
  for i = 1, #listed, 2 do standings[listed[i]] = tonumber(listed[i + 1]) end
  listed = redis.call('ZRANGE', age_key(tier), 0, -1, 'WITHSCORES')
  local past = 0
  for i = 2, #listed, 2 do
    listed[i] = tonumber(listed[i])
    if listed[i] <= now then past = past + 1 end
  end
  local cohorts = math.min(math.max(math.floor(past / COHORT_LEAST), 1), COHORTS, past)
  for i = 1, cohorts do order.newest[i] = listed[2 * math.floor(past * i / cohorts)] end
  order.newest[cohorts + 1] = math.huge
  for i = 1, cohorts + 1 do order.floor[i] = math.huge end
  local made, cohort = order.made, 1
  for i = 1, #listed, 2 do
    local id, created = listed[i], listed[i + 1]
    while created > order.newest[cohort] do cohort = cohort + 1 end
    local rank = APART * cohort + standings[id] + recency_then(order, created)
    if rank < order.floor[cohort] then order.floor[cohort] = rank end
    made[i], made[i + 1] = rank, id
  end
  order.standings, order.ages = standings, listed
  order_of(tier)
  orders[tier] = order
  return order
end

local function serves(order, tier, decay)
  local size = redis.call('ZCARD', standing_key(tier))
  return order and order.decay == decay and decay * math.abs(now - order.at) <= REACH * DAY and order.in_vain <= size
    and redis.call('ZCARD', order_key(tier)) == size
end

-- Goes on to the next entry of a cohort, from the lowest rank up; `reader` is {cohort, beside, bound}. `id`, `rank`: the
-- entry, nil before the first one and behind the last one. `bound`: the least relevance that it can have. `beside`: by how
-- much more its score can be.
local function step(tier, order, reader, most)
  local cohort = reader.cohort
  if not reader.list then
    reader.from, reader.offset, reader.size, reader.list, reader.at = APART * cohort, 0, 2, {}, 1
  else
    reader.at = reader.at + 2
  end
  if reader.at > #reader.list then
    reader.list = redis.call('ZRANGEBYSCORE', order_key(tier), reader.from, '(' .. APART * (cohort + 1), 'WITHSCORES',
      'LIMIT', reader.offset, reader.size)
    reader.at, reader.offset, reader.size = 1, reader.offset + reader.size, math.min(4 * reader.size, TOGETHER / 4)
  end
  local id, rank = reader.list[reader.at], reader.list[reader.at + 1]
  reader.run = rank == reader.rank and (reader.run or 0) + 1 or 1
  if rank and reader.run > most then
    reader.from, reader.offset, reader.list = '(' .. rank, 0, {}
    return step(tier, order, reader, most)
  end
  reader.bound = rank and tonumber(rank) - reader.beside or math.huge
  if not reader.begun then
    reader.begun = true
    local floor = rank and tonumber(rank) or math.huge
    if order.floor[cohort] ~= floor then order.floor[cohort], order.changed = floor, true end
  end
  reader.id, reader.rank = id, rank
end

-- Looks an order through as far as need be. False where it turns out not to be true: a process of an older version has
-- changed what it does not know of.
local function look_through(tier, order, wanted, best, skipped)
  local q = math.exp(-order.decay * (now - order.at) / DAY)
  local youngest = tonumber(redis.call('ZREVRANGE', age_key(tier), 0, 0, 'WITHSCORES')[2] or now)
  local readers = {}
  for cohort, newest in ipairs(order.newest) do
    local most = recency_then(order, math.min(newest, youngest))
    local slack = math.max(most - math.min(q * most, RECENCY_WEIGHT), 0)
    local beside = APART * cohort + slack + RANK_ROUNDING
    readers[cohort] = {cohort = cohort, beside = beside, bound = order.floor[cohort] - beside}
  end
  local looked = 0
  while true do
    local lowest = readers[1]
    for i = 2, #readers do
      if readers[i].bound < lowest.bound then lowest = readers[i] end
    end
    if lowest.bound == math.huge or lowest.bound > best.worst then break end
    local id, rank = lowest.id, lowest.rank
    step(tier, order, lowest, wanted + TIES)
    if id and not skipped(id) then
      local stands, created = score(standing_key(tier), id), score(age_key(tier), id)
      if not stands or math.abs(order_score(order, stands, created) - rank) > RANK_ROUNDING then return false end
      best.add(id, stands + recency(created, order.decay))
      looked = looked + 1
    end
  end
  if looked - wanted > FAR then
    order.in_vain = order.in_vain + looked - wanted
    order.changed = true
  end
  return true
end

-- The ids of the `wanted` unpinned memories of lowest relevance, lowest first, fewer where there are no more.
local function least_relevant(tier, wanted, rules, spared)
  local incoming = plan.incoming[tier] or {}
  local function skipped(id) return plan.left[id] or spared[id] or incoming[id] end
  local function begin()
    local best = gathering(wanted)
    for id, memory in pairs(incoming) do
      if memory.pinned == 0 and not spared[id] then
        best.add(id, standing(memory) + recency(memory.created, rules.decay))
      end
    end
    return best
  end
  local best, order = begin(), order_of(tier)
  local made = order and order.made
  if not made and not (serves(order, tier, rules.decay) and look_through(tier, order, wanted, best, skipped)) then
    best, order = begin(), new_order(tier, rules.decay)
    made = true
  end
  if made then
    for i = 1, #order.ages, 2 do
      local id = order.ages[i]
      if not skipped(id) then best.add(id, order.standings[id] + recency(order.ages[i + 1], rules.decay)) end
    end
  end
  best.settle()
  local ids = {}
  for i, candidate in ipairs(best) do ids[i] = candidate.id end
  return ids
end

local make_room
