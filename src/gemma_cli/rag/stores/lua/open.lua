-- Makes a namespace where there is none. ARGV: an epoch for it, a nonce, the version of the format, that of the words.
-- Returns format, words, generation, sequence, model, probe (false: none).

-- A server checks the rights to each command when a script gets there, and undoes nothing: so all commands that write are
-- tried here, on keys of their own, before any other script needs them.
local function try_rights()
  local hash, set, sorted, stream = BASE .. 'try:h', BASE .. 'try:s', BASE .. 'try:z', BASE .. 'try:x'
  local trials = {
    {'DEL', hash, set, sorted, stream}, {'HSET', hash, 'f', 1}, {'HINCRBY', hash, 'f', 1}, {'HDEL', hash, 'g'},
    {'PEXPIRE', hash, 60000}, {'PERSIST', hash}, {'SADD', set, 1}, {'SREM', set, 1},
    {'ZADD', sorted, 1, 1}, {'ZUNIONSTORE', sorted, 1, sorted}, {'ZREM', sorted, 2},
    {'ZREMRANGEBYRANK', sorted, 1, 2}, {'XADD', stream, '1-0', 'f', 1}, {'XTRIM', stream, 'MAXLEN', 1},
    {'DEL', hash, set, sorted, stream},
  }
  for _, trial in ipairs(trials) do
    local answer = redis.pcall(unpack(trial))
    local wrong = type(answer) == 'table' and answer.err
    if wrong and (string.find(wrong, 'ermission') or string.find(wrong, "can't run")) then
      redis.pcall('DEL', hash, set, sorted, stream)
      refuse('DENIED', trial[1])
    end
  end
end

return run(function()
  try_rights()
  if redis.call('HEXISTS', K.meta, 'generation') == 0 then
    redis.call('HSET', K.meta, 'format', ARGV[3], 'words', ARGV[4], 'generation', ARGV[1] .. '.0', 'next-row', 1)
    log_change(ARGV[2], {}, {}, true)
  end
  return redis.call('HMGET', K.meta, 'format', 'words', 'generation', 'sequence', 'model', 'probe')
end)
