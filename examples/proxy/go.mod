module github.com/seed-017344ad/sealedchat/examples/proxy

go 1.26.0

require github.com/seed-017344ad/sealedchat v0.0.0

require (
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/awnumar/memguard v0.23.0 // indirect
	github.com/emmansun/base64 v0.9.0 // indirect
	github.com/gofrs/flock v0.13.1 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/seed-017344ad/sealedchat => ../..
