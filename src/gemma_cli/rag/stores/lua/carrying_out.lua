-- Making room, and writing a plan down.

-- What of a tier deserves to move to the next and has room there, highest relevance first: where that can't hold all of
-- it beside its pinned ones and so many more that stay, the rest waits where it is.
local function ready(tier, target, rules, staying, spared)
  local found = {}
  for i, candidate in ipairs(deserving(tier, rules, spared)) do
    if i > rules.tiers[target + 1].capacity - pinned_count(target) - staying then break end
    found[i] = candidate.memory
  end
  return found
end

-- Moves what deserves it from a tier to the next, and returns the ids; those in `fresh` stay where they are.
local function promote(tier, target, rules, fresh)
  local staying = 0
  for id in pairs(fresh) do
    local memory = planned(id)
    if memory and memory.tier == target and memory.pinned == 0 then staying = staying + 1 end
  end
  local ids, kept = {}, {}
  for i, memory in ipairs(ready(tier, target, rules, staying, fresh)) do
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

-- Writes the plan down as one change; removals first, so that a full server can be emptied.
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
  if #changed + #plan.removals == 0 then return end
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
    redis.call('HSET', memory_key(id), 's', packed(memory), unpack(memory.fields or {}))
    if memory.was ~= memory.tier then displace(memory, memory.was) end
    place(memory)
    set_expiry(memory)
  end
  flush()
  for tier, total in pairs(plan.counts) do redis.call('HSET', K.meta, 'count:' .. tier, total) end
  for tier, total in pairs(plan.pinned) do redis.call('HSET', K.meta, 'pinned:' .. tier, total) end
end
