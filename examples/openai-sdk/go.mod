module github.com/seed-017344ad/sealedchat/examples/openai-sdk

go 1.26.0

require (
	github.com/openai/openai-go/v3 v3.96.0
	github.com/sashabaranov/go-openai v1.43.0
	github.com/seed-017344ad/sealedchat v0.0.0
)

require (
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/awnumar/memguard v0.23.0 // indirect
	github.com/coder/websocket v1.8.15 // indirect
	github.com/emmansun/base64 v0.9.0 // indirect
	github.com/gofrs/flock v0.13.1 // indirect
	github.com/tidwall/gjson v1.20.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
	github.com/tidwall/pretty v1.2.1 // indirect
	github.com/tidwall/sjson v1.2.5 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace github.com/seed-017344ad/sealedchat => ../..
