-- Fields of memories. ARGV: how many fields, the fields, the ids. One list of values an id, in their order.
return run(function()
  local wanted = tonumber(ARGV[1])
  local fields = {}
  for i = 1, wanted do fields[i] = field_name(ARGV[1 + i]) end
  local found = {}
  for i = wanted + 2, #ARGV do
    found[#found + 1] = redis.call('HMGET', memory_key(ARGV[i]), unpack(fields))
  end
  return found
end)
