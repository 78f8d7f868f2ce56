-- Links, most similar first, the newer memory first in each. ARGV: now, how many, an id ("": of all). Returns two ids and
-- their cosine, three values a link.
return run(function()
  now = tonumber(ARGV[1])
  local limit, id = tonumber(ARGV[2]), ARGV[3]
  local found = {}
  local function take(link, cosine)
    if not cosine then return end
    local ids = cjson.decode(link)
    local newer, older = load(ids[1]), load(ids[2])
    if alive(newer) and alive(older) then
      found[#found + 1] = {ids = ids, cosine = tonumber(cosine), text = cosine, row = newer.row}
    end
  end
  if id ~= '' then
    for _, link in ipairs(redis.call('SMEMBERS', links_key(id))) do take(link, redis.call('ZSCORE', K.links, link)) end
  else
    local first, stride = 0, math.min(limit + STRIDE, TOGETHER)
    while true do
      local links = redis.call('ZREVRANGE', K.links, first, first + stride - 1, 'WITHSCORES')
      for i = 1, #links, 2 do take(links[i], links[i + 1]) end
      -- Those that are as similar as the last one wanted may stand behind it here and before it in the answer.
      if #links < 2 * stride or (#found > limit and found[#found].cosine < found[limit].cosine) then break end
      first = first + stride
    end
  end
  table.sort(found, function(one, other)
    if one.cosine ~= other.cosine then return one.cosine > other.cosine end
    return one.row > other.row
  end)
  local answer = {}
  for i = 1, math.min(limit, #found) do
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = found[i].ids[1], found[i].ids[2], found[i].text
  end
  return answer
end)
