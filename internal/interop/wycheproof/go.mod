module github.com/seed-017344ad/sealedchat/internal/interop/wycheproof

go 1.26.4

require (
	github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
	github.com/seed-017344ad/sealedchat v0.0.0-00010101000000-000000000000
)

require (
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/awnumar/memguard v0.23.0 // indirect
	github.com/emmansun/base64 v0.9.0 // indirect
	github.com/gofrs/flock v0.13.1 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/seed-017344ad/sealedchat => ../../..
