-- What all scripts share: the keys, a memory's numbers, refusals.

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

-- Milliseconds after its end that a memory's hash may wait for a sweep before the server drops it by itself. A day, for
-- the server measures by its own clock: that of the one who asks may be behind the writer's, or stand still.
local GRACE = 86400000
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
