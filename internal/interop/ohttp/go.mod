module github.com/seed-017344ad/sealedchat/internal/interop/ohttp

go 1.26.0

require (
	github.com/cloudflare/circl v1.6.1
	github.com/openpcc/ohttp v0.0.80
	github.com/seed-017344ad/sealedchat v0.0.0-00010101000000-000000000000
)

require (
	github.com/awnumar/memcall v0.4.0 // indirect
	github.com/awnumar/memguard v0.23.0 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/emmansun/base64 v0.9.0 // indirect
	github.com/gofrs/flock v0.13.1 // indirect
	github.com/quic-go/quic-go v0.57.1 // indirect
	go.opentelemetry.io/otel v1.39.0 // indirect
	go.opentelemetry.io/otel/trace v1.39.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)

// openpcc/ohttp asks for versions of these that the module proxy does not have.
require (
	github.com/openpcc/bhttp v0.0.80 // indirect
	github.com/openpcc/twoway v0.0.80 // indirect
)

replace github.com/seed-017344ad/sealedchat => ../../..
