-- What the handler has deferred is done under the settings that it has made, before these are taken back.
set constraints all immediate
