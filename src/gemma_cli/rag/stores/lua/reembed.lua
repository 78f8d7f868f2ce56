-- Going over to another model, or to other words. ARGV: generation, nonce, now, the step and what it needs:
--   begin, model, probe        starts towards a model or goes on; returns how many memories have no new vector
--   put, model, probe, (id, row, sequence, vector, code)...
--                              keeps new vectors of memories that are as they were read
--   finish, model, probe       lets the new vectors take over; returns the new generation, or 0 where some are missing
--   clean, ids...              removes what the model before has made; with no id, notes that all of it is gone
--   words, version, (id, sequence, terms)...    keeps words cut anew; with no memory at all, notes the version
local steps = {}

local function number_of(generation) return tonumber(string.match(generation, '%d+$')) end

-- Whether the vectors that are gathering are those of the caller's model.
local function under_way()
  local towards = redis.call('HMGET', K.meta, 'next-model', 'next-probe')
  return towards[1] == ARGV[5] and (towards[2] or '') == ARGV[6]
end

-- Writes down the caller's model.
local function note_model(model, probe)
  redis.call('HSET', K.meta, model, ARGV[5])
  if ARGV[6] == '' then redis.call('HDEL', K.meta, probe) else redis.call('HSET', K.meta, probe, ARGV[6]) end
end

function steps.begin()
  sweep()
  carry_out(ARGV[2])
  if not under_way() then
    note_model('next-model', 'next-probe')
    redis.call('ZUNIONSTORE', K.unembedded, 1, K.created)
  end
  return redis.call('ZCARD', K.unembedded)
end

function steps.put()
  if not under_way() then refuse('REPLACED') end
  local generation, kept = number_of(ARGV[1]) + 1, {}
  for i = 7, #ARGV, 5 do
    local memory = load(ARGV[i])
    if memory and memory.row == tonumber(ARGV[i + 1]) and memory.sequence == tonumber(ARGV[i + 2]) then
      kept[#kept + 1] = i
    end
  end
  local vector, code = field_name('vector', generation), field_name('code', generation)
  for _, i in ipairs(kept) do
    redis.call('HSET', memory_key(ARGV[i]), vector, ARGV[i + 3], code, ARGV[i + 4])
    redis.call('ZREM', K.unembedded, ARGV[i])
  end
  return #kept
end

function steps.finish()
  if not under_way() then refuse('REPLACED') end
  sweep()
  local left = redis.call('ZCARD', K.unembedded)
  for _, memory in ipairs(plan.removals) do
    if score(K.unembedded, memory.id) then left = left - 1 end
  end
  carry_out(ARGV[2], '0')
  if left > 0 then return '0' end
  local old = number_of(ARGV[1])
  local generation = string.match(ARGV[1], '^%w+') .. '.' .. string.format('%d', old + 1)
  log_change(ARGV[2], {}, {}, true, generation)
  note_model('model', 'probe')
  redis.call('HSET', K.meta, 'generation', generation, 'stale', old)
  redis.call('HDEL', K.meta, 'next-model', 'next-probe')
  redis.call('ZUNIONSTORE', K.uncompared, 1, K.created)
  redis.call('ZUNIONSTORE', K.untokened, 1, K.created)
  redis.call('DEL', K.links, K.embeddings, K.ages)
  return generation
end

function steps.clean()
  local stale = redis.call('HGET', K.meta, 'stale')
  if not stale then return 0 end
  for i = 5, #ARGV do
    redis.call('HDEL', memory_key(ARGV[i]), 'vector:' .. stale, 'code:' .. stale, 'tokens:' .. stale)
  end
  if #ARGV == 4 then redis.call('HDEL', K.meta, 'stale') end
  return 1
end

function steps.words()
  if #ARGV == 5 then
    log_change(ARGV[2], {}, {}, true)
    redis.call('HSET', K.meta, 'words', ARGV[5])
    return 0
  end
  for i = 6, #ARGV, 3 do
    local memory = load(ARGV[i])
    if memory and memory.sequence == tonumber(ARGV[i + 1]) then
      redis.call('HSET', memory_key(ARGV[i]), 'terms', ARGV[i + 2])
    end
  end
  return 1
end

return run(function()
  -- A change of model, once made, is another generation's: it must be known before that is compared.
  local before = ARGV[4] == 'finish' and repeated(ARGV[2])
  if before then return before end
  expect(ARGV[1])
  now = tonumber(ARGV[3])
  return steps[ARGV[4]]()
end)
