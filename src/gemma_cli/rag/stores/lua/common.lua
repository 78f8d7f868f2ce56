-- What the scripts share: the keys, a memory's numbers, and a plan of changes that is written at its end.
--
-- Whatever a script will touch it reads before its first write. So a refusal leaves everything as it was, and so does
-- a key that a resharding cluster has moved away already.

local NAMES = {'meta', 'changes', 'created', 'expiry', 'uncompared', 'untokened', 'unembedded', 'links', 'embeddings',
  'ages'}
local K = {}
for i, name in ipairs(NAMES) do K[name] = KEYS[i] end
local TIERS = 5
local function standing_key(tier) return KEYS[#NAMES + 1 + tier] end
local function age_key(tier) return KEYS[#NAMES + 1 + TIERS + tier] end
local function order_key(tier) return KEYS[#NAMES + 1 + 2 * TIERS + tier] end
local BASE = string.sub(KEYS[1], 1, -5)
local function memory_key(id) return BASE .. 'm:' .. id end
local function links_key(id) return BASE .. 'l:' .. id end

-- The numbers of a memory, in the order in which `s` packs them.
local FIELDS = {'row', 'tier', 'importance', 'count', 'created', 'accessed', 'expires', 'occurred', 'pinned',
  'sequence'}
local FORMAT = '<dddddddddd'
local NEVER = math.huge

-- As memory.py has them.
local IMPORTANCE_WEIGHT, RECENCY_WEIGHT, FREQUENCY_WEIGHT, FREQUENCY_HALF = 0.5, 0.3, 0.2, 5
local DAY, ROUNDING = 86400, 1e-9

-- As sqlite_eviction.py has them.
local REACH, COHORTS, COHORT_LEAST, FAR, RANK_ROUNDING = 0.25, 16, 128, 8, 1e-12
-- More than any rank, so that cohorts lie one behind the other in a sorted set.
local APART = 2

-- Milliseconds after its end that a memory's hash may wait for a sweep before the server drops it by itself.
local GRACE = 60000
local LONGEST = 1e14

-- Changes kept for slow readers: so many entries, so many memories named in them.
local ENTRIES_KEPT, NAMED_KEPT = 20000, 50000

-- Bytes of a nonce; one more says that the request may have been carried out already.
local NONCE = 8
local STRIDE = 8

-- Memories of one rank and cohort whose rows are compared, beyond those wanted: thousands may have come at once.
local TIES = 16

-- Words of a command; even, and far below what Lua can hand over.
local TOGETHER = 2000

local now

local function refuse(code, detail)
  error({gemma = 'GEMMA ' .. code .. ' ' .. (detail or '')})
end

-- Runs a script's work and turns its refusals into error replies.
local function run(work)
  local ok, result = pcall(work)
  if ok then return result end
  if type(result) == 'table' and result.gemma then return redis.error_reply(result.gemma) end
  -- From Redis 7 on what a command refused begins with its code word; `error` would put a place before that.
  if type(result) == 'string' then return redis.error_reply(result) end
  error(result)
end

-- Refuses unless the namespace is the one, with the model, that the caller opened.
local function expect(generation)
  local stored = redis.call('HGET', K.meta, 'generation')
  if not stored then refuse('LOST') end
  if stored ~= generation then
    refuse(string.match(stored, '^%w+') == string.match(generation, '^%w+') and 'MODEL' or 'LOST')
  end
end

-- The result of a request that was carried out already: its answer was lost, and it comes again.
local function repeated(nonce)
  if #nonce == NONCE then return nil end -- it comes for the first time
  nonce = string.sub(nonce, 1, NONCE)
  local last = '+'
  while true do
    local entries = redis.call('XREVRANGE', K.changes, last, '-', 'COUNT', 256)
    for _, entry in ipairs(entries) do
      local fields = entry[2]
      if fields[2] == nonce then
        for i = 3, #fields, 2 do
          if fields[i] == 'a' then return fields[i + 1] end
        end
        return ''
      end
    end
    if #entries < 256 then return nil end
    last = '(' .. entries[#entries][1]
  end
end

local function number(name) return tonumber(redis.call('HGET', K.meta, name) or 0) end

local function unpacked(id, packed)
  local values = {struct.unpack(FORMAT, packed)}
  local memory = {id = id}
  for i, name in ipairs(FIELDS) do memory[name] = values[i] end
  return memory
end

local function packed(memory)
  local values = {}
  for i, name in ipairs(FIELDS) do values[i] = memory[name] end
  return struct.pack(FORMAT, unpack(values))
end

-- The name of a field in a memory's hash. What a model has made has the number of the model's generation in its name, so
-- that another model's takes over for all memories at once.
local generation_number
local function field_name(name, generation)
  if name ~= 'vector' and name ~= 'code' and name ~= 'tokens' then return name end
  if not generation then
    generation_number = generation_number or string.match(redis.call('HGET', K.meta, 'generation') or '0', '%d+$')
    generation = generation_number
  end
  return name .. ':' .. generation
end

-- Names and values in turns, the names as `field_name` has them.
local function fields_of(arguments, first, last)
  local fields = {}
  for i = first, last, 2 do
    fields[#fields + 1] = field_name(arguments[i])
    fields[#fields + 1] = arguments[i + 1]
  end
  return fields
end

local function load(id)
  local found = redis.call('HGET', memory_key(id), 's')
  return found and unpacked(id, found)
end

local function alive(memory) return memory and memory.expires > now end

local function standing(memory)
  return IMPORTANCE_WEIGHT * memory.importance + FREQUENCY_WEIGHT * memory.count / (memory.count + FREQUENCY_HALF)
end

local function recency(created, decay)
  return RECENCY_WEIGHT * math.exp(-decay * math.max(now - created, 0) / DAY)
end

local function score(key, id)
  local found = redis.call('ZSCORE', key, id)
  return found and tonumber(found)
end

-- Descending by relevance, then by row.
local function higher(one, other)
  if one.relevance ~= other.relevance then return one.relevance > other.relevance end
  return one.memory.row > other.memory.row
end

-- The plan

local plan = {removals = {}, moves = {}, fresh = {}, order = {}, left = {}, incoming = {}, counts = {}, pinned = {},
  memories = {}, changed = {}}

local function tier_count(tier)
  plan.counts[tier] = plan.counts[tier] or number('count:' .. tier)
  return plan.counts[tier]
end

local function pinned_count(tier)
  plan.pinned[tier] = plan.pinned[tier] or number('pinned:' .. tier)
  return plan.pinned[tier]
end

local function count(memory, difference)
  plan.counts[memory.tier] = tier_count(memory.tier) + difference
  if memory.pinned == 1 then plan.pinned[memory.tier] = pinned_count(memory.tier) + difference end
end

-- A memory as the plan has it.
local function planned(id)
  if plan.memories[id] == nil then plan.memories[id] = load(id) or false end
  return plan.memories[id]
end

-- Of a memory whose hash the server has dropped, what the sorted sets still know.
local function dropped(id)
  for tier = 0, TIERS - 1 do
    if score(age_key(tier), id) then return {id = id, tier = tier, pinned = 0, vanished = true} end
  end
  return nil
end

local function remove(id)
  if plan.left[id] and not plan.memories[id] then return false end
  local memory = planned(id) or dropped(id)
  if not memory then return false end
  count(memory, -1)
  plan.memories[id] = false
  if plan.incoming[memory.tier] then plan.incoming[memory.tier][id] = nil end
  if memory.new then
    plan.fresh[id] = nil
    return true
  end
  plan.left[id] = true
  plan.moves[id] = nil
  memory.was = memory.was or memory.tier
  memory.links = redis.call('SMEMBERS', links_key(id))
  for _, link in ipairs(memory.links) do
    for _, other in ipairs(cjson.decode(link)) do redis.call('EXISTS', links_key(other)) end
  end
  if not memory.vanished then memory.content = redis.call('HGET', memory_key(id), 'content') end
  plan.removals[#plan.removals + 1] = memory
  return true
end

local function enter(memory, tier)
  plan.incoming[tier] = plan.incoming[tier] or {}
  plan.incoming[tier][memory.id] = memory
end

local function add(memory)
  memory.new = true
  plan.memories[memory.id] = memory
  plan.fresh[memory.id] = memory
  plan.order[#plan.order + 1] = memory
  count(memory, 1)
  enter(memory, memory.tier)
end

local function move(memory, to, rules)
  memory.was = memory.was or memory.tier
  if plan.incoming[memory.tier] then plan.incoming[memory.tier][memory.id] = nil end
  count(memory, -1)
  memory.tier = to
  count(memory, 1)
  local ttl = rules.tiers[to + 1].ttl
  memory.expires = (memory.pinned == 1 or ttl < 0) and NEVER or now + ttl
  enter(memory, to)
  if not memory.new then
    plan.left[memory.id] = true
    plan.moves[memory.id] = memory
  end
end

local function sweep()
  local swept = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', K.expiry, '-inf', now)) do
    if not plan.left[id] and remove(id) then swept = swept + 1 end
  end
  return swept
end

-- The unpinned, living memories of a tier whose relevance reaches the threshold, highest first, but for `spared`.
local function deserving(tier, rules, spared)
  local found = {}
  -- Recency is at most RECENCY_WEIGHT, so whoever stands lower than the rest of the threshold can't reach it.
  local least = rules.threshold - RECENCY_WEIGHT - ROUNDING
  local standings = redis.call('ZRANGEBYSCORE', standing_key(tier), least, '+inf', 'WITHSCORES')
  for i = 1, #standings, 2 do
    local id = standings[i]
    if not plan.left[id] and not spared[id] then
      local relevance = tonumber(standings[i + 1]) + recency(score(age_key(tier), id), rules.decay)
      if relevance >= rules.threshold then
        local memory = planned(id)
        if alive(memory) then found[#found + 1] = {relevance = relevance, memory = memory} end
      end
    end
  end
  table.sort(found, higher)
  return found
end

-- One whose hash the server has dropped comes before all others.
local function row_of(id)
  local memory = planned(id)
  return memory and memory.row or -1
end

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

-- Moves what deserves it from a tier to the next, and returns the ids. Highest relevance first: where the next tier
-- can't hold all of it (its pinned and its fresh ones stay), the rest waits where it is.
local function promote(tier, target, rules, fresh)
  local candidates = deserving(tier, rules, fresh)
  if #candidates == 0 then return {} end
  local staying = pinned_count(target)
  for id in pairs(fresh) do
    local memory = planned(id)
    if memory and memory.tier == target and memory.pinned == 0 then staying = staying + 1 end
  end
  local ids, kept = {}, {}
  for i = 1, math.min(#candidates, math.max(rules.tiers[target + 1].capacity - staying, 0)) do
    local memory = candidates[i].memory
    move(memory, target, rules)
    ids[i], kept[memory.id] = memory.id, true
  end
  if #ids > 0 then
    for id in pairs(fresh) do kept[id] = true end
    make_room(target, rules, kept)
  end
  return ids
end

-- Brings a tier within its capacity; those in `fresh` stay where they are while anything else can leave.
make_room = function(tier, rules, fresh)
  local policy = rules.tiers[tier + 1]
  if tier_count(tier) <= policy.capacity then return end
  sweep()
  if policy.to >= 0 and tier_count(tier) > policy.capacity then promote(tier, policy.to, rules, fresh) end
  local excess = tier_count(tier) - policy.capacity
  if excess <= 0 then return end
  local leaving = least_relevant(tier, excess, rules, fresh)
  if #leaving < excess then
    -- Only what came with this very write is left: the best of it stays, and the last of it in any case.
    local spared, last = {}, nil
    for _, id in ipairs(leaving) do spared[id] = true end
    for id in pairs(fresh) do
      local memory = planned(id)
      if memory and memory.tier == tier and (not last or memory.row > last.row) then last = memory end
    end
    if last then spared[last.id] = true end
    for _, id in ipairs(least_relevant(tier, excess - #leaving, rules, spared)) do leaving[#leaving + 1] = id end
  end
  if #leaving < excess then refuse('FULL', string.format('%d %d', tier, policy.capacity)) end
  for _, id in ipairs(leaving) do remove(id) end
end

-- Writing

-- Entries of sorted sets gather here and are written together, with what they change in the orders' floors: one command
-- for each would be most of a large batch's time.
local batch = {ZREM = {}, ZADD = {}}

local function later(command, key, ...)
  local list = batch[command][key] or {}
  batch[command][key] = list
  for _, word in ipairs({...}) do list[#list + 1] = word end
end

local function flush()
  for _, command in ipairs({'ZREM', 'ZADD'}) do
    for key, list in pairs(batch[command]) do
      for first = 1, #list, TOGETHER do
        redis.call(command, key, unpack(list, first, math.min(first + TOGETHER - 1, #list)))
      end
    end
    batch[command] = {}
  end
  for tier, order in pairs(orders or {}) do
    if order and order.changed then
      note_order(tier, order)
      order.changed = false
    end
  end
end

local function set_expiry(memory)
  local key = memory_key(memory.id)
  if memory.expires < NEVER then
    later('ZADD', K.expiry, memory.expires, memory.id)
    -- The server drops what nobody sweeps. Its clock may be another than the caller's: only the difference counts.
    redis.call('PEXPIRE', key, math.floor(math.min(math.max((memory.expires - now) * 1000, 0) + GRACE, LONGEST)))
  else
    later('ZREM', K.expiry, memory.id)
    redis.call('PERSIST', key)
  end
end

local function displace(memory, tier)
  later('ZREM', standing_key(tier), memory.id)
  later('ZREM', age_key(tier), memory.id)
  if order_of(tier) then later('ZREM', order_key(tier), memory.id) end
end

local function place(memory)
  if memory.pinned == 1 then
    displace(memory, memory.tier)
  else
    local order = order_of(memory.tier)
    later('ZADD', standing_key(memory.tier), standing(memory), memory.id)
    later('ZADD', age_key(memory.tier), memory.created, memory.id)
    if order then later('ZADD', order_key(memory.tier), entering_score(order, standing(memory), memory.created), memory.id) end
  end
end

-- Writes the orders that the plan has made. Begins with a removal, as all writing does.
local function write_orders()
  for tier = 0, TIERS - 1 do
    local order = order_of(tier)
    if order and order.made then
      redis.call('DEL', order_key(tier))
      for first = 1, #order.made, TOGETHER do
        redis.call('ZADD', order_key(tier), unpack(order.made, first, math.min(first + TOGETHER - 1, #order.made)))
      end
    end
  end
end

-- The vector of a text that was forgotten goes with it.
local function forget_text(content)
  local digest = redis.sha1hex(content)
  if redis.call('HDEL', K.embeddings, digest) == 1 then redis.call('ZREM', K.ages, digest) end
end

-- A memory that goes, or becomes another text, is nobody's near-duplicate any more.
local function unlink(id, links)
  for _, link in ipairs(links) do
    redis.call('ZREM', K.links, link)
    for _, other in ipairs(cjson.decode(link)) do
      if other ~= id then redis.call('SREM', links_key(other), link) end
    end
  end
  redis.call('DEL', links_key(id))
end

-- One entry of the stream of changes, under the next sequence number, which it returns. Lists may be empty; `reset`:
-- every index is void. `result`: what the request is answered with, should it come again. `coded`: ids that have
-- token codes now, which is nothing for an index to take in.
local function log_change(nonce, changed, removed, reset, result, coded)
  local sequence = redis.call('HINCRBY', K.meta, 'sequence', 1)
  local entry = {'n', string.sub(nonce, 1, NONCE)}
  local function field(name, value)
    entry[#entry + 1] = name
    entry[#entry + 1] = value
  end
  if #changed > 0 then field('c', cjson.encode(changed)) end
  if #removed > 0 then field('d', cjson.encode(removed)) end
  if reset then field('r', '1') end
  if result then field('a', result) end
  if coded then field('t', cjson.encode(coded)) end
  local named = redis.call('HINCRBY', K.meta, 'named', #changed + #removed)
  field('k', named)
  redis.call('XADD', K.changes, sequence .. '-0', unpack(entry))
  if sequence % 64 == 0 then
    local length = redis.call('XLEN', K.changes)
    local oldest = redis.call('XRANGE', K.changes, '-', '+', 'COUNT', 1)[1][2]
    if length > ENTRIES_KEPT or named - tonumber(oldest[#oldest]) > NAMED_KEPT then
      redis.call('XTRIM', K.changes, 'MAXLEN', math.floor(length / 2))
    end
  end
  return sequence
end

-- Writes the plan down as one change; removals first, so that a full server can be emptied. Returns its sequence
-- number, or nil where nothing was to be done.
local function carry_out(nonce, result)
  local changed, removed = {}, {}
  write_orders()
  for _, memory in ipairs(plan.removals) do
    redis.call('DEL', memory_key(memory.id))
    displace(memory, memory.was)
    for _, name in ipairs({'created', 'expiry', 'uncompared', 'untokened', 'unembedded'}) do
      later('ZREM', K[name], memory.id)
    end
    unlink(memory.id, memory.links)
    if memory.content then forget_text(memory.content) end
    if memory.row then removed[#removed + 1] = memory.row end
  end
  flush()
  local new = {}
  for _, memory in ipairs(plan.order) do
    if plan.fresh[memory.id] == memory then new[#new + 1] = memory end
  end
  for _, memory in ipairs(new) do changed[#changed + 1] = memory.id end
  for id in pairs(plan.moves) do changed[#changed + 1] = id end
  for _, id in ipairs(plan.changed) do changed[#changed + 1] = id end
  if #changed + #plan.removals == 0 then return nil end
  local sequence = log_change(nonce, changed, removed, false, result)
  for _, memory in ipairs(new) do
    memory.sequence = sequence
    local key = memory_key(memory.id)
    redis.call('HSET', key, 's', packed(memory), unpack(memory.fields))
    later('ZADD', K.created, memory.created, memory.id)
    later('ZADD', K.uncompared, memory.row, memory.id)
    later('ZADD', K.untokened, memory.row, memory.id)
    if plan.reembedding then later('ZADD', K.unembedded, memory.row, memory.id) end
    place(memory)
    if memory.expires < NEVER then set_expiry(memory) end
  end
  for id, memory in pairs(plan.moves) do
    memory.sequence = sequence
    redis.call('HSET', memory_key(id), 's', packed(memory))
    displace(memory, memory.was)
    place(memory)
    set_expiry(memory)
  end
  flush()
  for tier, total in pairs(plan.counts) do redis.call('HSET', K.meta, 'count:' .. tier, total) end
  for tier, total in pairs(plan.pinned) do redis.call('HSET', K.meta, 'pinned:' .. tier, total) end
  return sequence
end
