// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// TestAuditEventCost and BenchmarkAuditEvent tell what an event costs of the CPU that the client
// spends on the cryptography of a 1 KiB request and its answer, which is less than all that a
// request costs. Both are measured in turns, in one run.
func TestAuditEventCost(t *testing.T) {
	if !testkit.Long() {
		t.Skip("it is for a quiet machine: SEALEDCHAT_LONG=1")
	}
	for name, o := range map[string]*sealedchat.AuditLogOptions{
		"FlushEachSecond": {FlushEvery: time.Second},
		"FlushEachEvent":  nil} {
		round := auditCost(t, o)
		var requests, events float64
		for range 10 {
			r, e := round()
			requests, events = requests+r, events+e
		}
		t.Logf("%s: an event costs %.2f %% of a request", name, 100*events/requests)
		if events > requests/20 {
			t.Errorf("%s: want less than 5 %%", name)
		}
	}
}

func BenchmarkAuditEvent(b *testing.B) {
	for name, o := range map[string]*sealedchat.AuditLogOptions{
		"EachSecond": {FlushEvery: time.Second},
		"EachEvent":  nil} {
		b.Run(name, func(b *testing.B) {
			round := auditCost(b, o)
			var requests, events float64
			for b.Loop() {
				r, e := round()
				requests, events = requests+r, events+e
			}
			b.ReportMetric(100*events/requests, "%of-a-request")
			b.ReportMetric(1e6*events/costRounds/float64(b.N), "µs/event")
			b.ReportMetric(1e6*requests/costRounds/float64(b.N), "µs/request")
		})
	}
}

const costRounds = 20

// auditCost returns a function that works off costRounds requests, then as many events, and returns
// the CPU seconds of each.
func auditCost(t testing.TB, o *sealedchat.AuditLogOptions) func() (requests, events float64) {
	t.Helper()
	server, err := hybrid.NewPrivateKey(storedKey(t, "server-4096"))
	if err != nil {
		t.Fatal(err)
	}
	mine, err := hybrid.NewPrivateKey(storedKey(t, "client-4096"))
	if err != nil {
		t.Fatal(err)
	}
	plaintext := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x",
		1024) + `"}]}`)
	answer, err := fakes.Seal(mine.Public(), plaintext)
	if err != nil {
		t.Fatal(err)
	}
	text := envelope.Append(nil, answer)
	request := func() {
		e, err := fakes.Seal(server.Public(), plaintext)
		if err != nil {
			t.Fatal(err)
		}
		_ = envelope.Append(make([]byte, 0, envelope.Size(e)), e)
		again, err := envelope.Parse(append([]byte(nil), text...), len(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mine.Open(&again, nil); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	keys, err := sealedchat.CreateKeyStore(t.Context(), filepath.Join(dir, "keys"),
		secret(t, "correct horse battery staple"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	l, err := sealedchat.OpenAuditLog(t.Context(), filepath.Join(dir, "log", "audit.log"), keys, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := sealedchat.Event{
		Type: sealedchat.EventRequestSealed, PayloadID: testkit.UUID(),
		Fingerprint: server.Public().Fingerprint(),
		Tier:        sealedchat.TierStandard, Bytes: int64(len(plaintext)),
	}
	return func() (requests, events float64) {
		start := testkit.CPUTime()
		for range costRounds {
			request()
		}
		between := testkit.CPUTime()
		for range costRounds {
			if err := l.Record(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		return (between - start).Seconds(), (testkit.CPUTime() - between).Seconds()
	}
}
