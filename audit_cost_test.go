// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
)

// BenchmarkAuditEvent prints what an event costs of the CPU that the client spends on the cryptography of a 1 KiB request
// and its answer, which is less than all that a request costs. Both are measured in one run, one after the other.
func BenchmarkAuditEvent(b *testing.B) {
	server, err := newPrivateKey(storedKey(b, "server-4096"))
	if err != nil {
		b.Fatal(err)
	}
	mine, err := newPrivateKey(storedKey(b, "client-4096"))
	if err != nil {
		b.Fatal(err)
	}
	plaintext := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 1024) + `"}]}`)
	answer, err := mine.public.seal(plaintext)
	if err != nil {
		b.Fatal(err)
	}
	text := envelope.Append(nil, answer)
	request := func() {
		e, err := server.public.seal(plaintext)
		if err != nil {
			b.Fatal(err)
		}
		_ = envelope.Append(make([]byte, 0, envelope.Size(e)), e)
		again, err := envelope.Parse(append([]byte(nil), text...), len(text))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := mine.open(&again); err != nil {
			b.Fatal(err)
		}
	}
	e := Event{
		Type: EventRequestSealed, PayloadID: newUUID(), Fingerprint: server.public.fingerprint, Tier: TierStandard, Bytes: int64(len(plaintext)),
	}
	for name, o := range map[string]*AuditLogOptions{"EachSecond": {Flush: FlushEachSecond}, "EachEvent": nil} {
		b.Run(name, func(b *testing.B) {
			l, _, _ := startAuditLog(b, o)
			var requests, events float64
			for b.Loop() {
				before := cpuTime(b)
				for range 20 {
					request()
				}
				between := cpuTime(b)
				for range 20 {
					if err := l.Record(context.Background(), e); err != nil {
						b.Fatal(err)
					}
				}
				requests += between - before
				events += cpuTime(b) - between
			}
			b.ReportMetric(100*events/requests, "%of-a-request")
			b.ReportMetric(1e6*events/20/float64(b.N), "µs/event")
			b.ReportMetric(1e6*requests/20/float64(b.N), "µs/request")
		})
	}
}
