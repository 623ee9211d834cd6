-- Wakes `medqa orthanc --wake 8043` as soon as a series is complete, so that it need not look often.
-- Optional, and nothing is lost without it. In Orthanc's configuration:
--   "LuaScripts" : [ "/etc/orthanc/medqa.lua" ]

function OnStableSeries(seriesId, tags, metadata)
  HttpPost('http://127.0.0.1:8043/', seriesId)
end
