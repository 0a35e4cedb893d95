"""`trd-ray submit`: check, pack, send, follow.

`checks` refuses a bad configuration here, `package` packs what the job needs, `job` says what is sent,
`cluster` talks to Ray's job API with patience, `follow` shows the job's log until its end.
"""
