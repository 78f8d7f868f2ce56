-- A plan of changes, which `carrying_out.lua` writes down at its end.
--
-- Whatever a script will touch it reads before its first write. So a refusal leaves everything as it was, and so does
-- a key that a resharding cluster has moved away already.
--
-- `fresh` are memories that come, in `order`; `moves` are stored ones that go to another tier or get other fields. What
-- the sorted sets say of those in `left` holds no more; `incoming` are those that a tier's sets don't know yet.

local plan = {removals = {}, moves = {}, fresh = {}, order = {}, left = {}, incoming = {}, counts = {}, pinned = {},
  memories = {}}

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

-- The links of a memory, once the keys that end with them have been read.
local function neighbours(id)
  local links = redis.call('SMEMBERS', links_key(id))
  for _, link in ipairs(links) do
    for _, other in ipairs(cjson.decode(link)) do redis.call('EXISTS', links_key(other)) end
  end
  return links
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
  memory.links = neighbours(id)
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

-- Stands in another tier from now on.
local function shift(memory, to)
  memory.was = memory.was or memory.tier
  if plan.incoming[memory.tier] then plan.incoming[memory.tier][memory.id] = nil end
  count(memory, -1)
  memory.tier = to
  count(memory, 1)
  enter(memory, to)
  if not memory.new then
    plan.left[memory.id] = true
    plan.moves[memory.id] = memory
  end
end

local function move(memory, to, rules)
  shift(memory, to)
  local ttl = rules.tiers[to + 1].ttl
  memory.expires = (memory.pinned == 1 or ttl < 0) and NEVER or now + ttl
end

-- A stored memory becomes another one, which has its row.
local function change(old, memory)
  local to = memory.tier
  count(old, -1)
  memory.tier, memory.was = old.tier, old.tier
  count(memory, 1)
  plan.memories[memory.id] = memory
  plan.moves[memory.id] = memory
  if to ~= old.tier then shift(memory, to) end
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
  local function consider(memory, relevance)
    if relevance >= rules.threshold and alive(memory) then found[#found + 1] = {relevance = relevance, memory = memory} end
  end
  for id, memory in pairs(plan.incoming[tier] or {}) do
    if memory.pinned == 0 and not spared[id] then
      consider(memory, standing(memory) + recency(memory.created, rules.decay))
    end
  end
  -- Recency is at most RECENCY_WEIGHT, so whoever stands lower than the rest of the threshold can't reach it.
  local least = rules.threshold - RECENCY_WEIGHT - ROUNDING
  local standings = redis.call('ZRANGEBYSCORE', standing_key(tier), least, '+inf', 'WITHSCORES')
  for i = 1, #standings, 2 do
    local id = standings[i]
    if not plan.left[id] and not spared[id] then
      local relevance = tonumber(standings[i + 1]) + recency(score(age_key(tier), id), rules.decay)
      if relevance >= rules.threshold then consider(planned(id), relevance) end
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
