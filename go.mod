module github.com/seed-017344ad/sealedchat

go 1.26.0

require (
	github.com/awnumar/memcall v0.4.0
	github.com/emmansun/base64 v0.9.0
	github.com/gofrs/flock v0.13.1
	golang.org/x/crypto v0.58.0
	golang.org/x/sys v0.49.0
)

require github.com/awnumar/memguard v0.23.0
