-- Writes down the model of an empty namespace. ARGV: generation as the caller knows it, nonce, model, probe ("": none).
-- Returns model, probe and generation that hold from now on.
return run(function()
  local stored = redis.call('HGET', K.meta, 'generation')
  if not stored then refuse('LOST') end
  local kept = redis.call('HMGET', K.meta, 'model', 'probe')
  local same = kept[1] == ARGV[3] and (kept[2] or '') == ARGV[4]
  if kept[1] and (same or redis.call('EXISTS', K.created) == 1) then return {kept[1], kept[2], stored} end
  if kept[1] then
    -- Who has opened the empty namespace for another model learns of it by the generation.
    local epoch, generation = string.match(stored, '^(%w+)%.(%d+)$')
    stored = epoch .. '.' .. string.format('%d', generation + 1)
  end
  redis.call('DEL', K.embeddings, K.ages)
  redis.call('HSET', K.meta, 'model', ARGV[3], 'generation', stored)
  if ARGV[4] == '' then redis.call('HDEL', K.meta, 'probe') else redis.call('HSET', K.meta, 'probe', ARGV[4]) end
  log_change(ARGV[2], {}, {}, true)
  return {ARGV[3], ARGV[4] ~= '' and ARGV[4], stored}
end)
