// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"crypto/sha3"
	"crypto/sha512"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// What TestProcessMemoryOfGateway looks for.
const (
	rowXWing     = "X-Wing's seed"
	rowMLKEM     = "X-Wing's ML-KEM seed"
	rowScalar    = "X-Wing's X25519 scalar"
	rowX25519    = "X25519's scalar"
	rowSigner    = "seed of the lists' signer"
	rowSignature = "its key for nonces" // with a signature, the signer's scalar follows
)

var configRows = []string{rowXWing, rowMLKEM, rowScalar, rowX25519, rowSigner, rowSignature}

// serve DIR, then the passphrase: a gateway whose keys for Oblivious HTTP are made now. It says
// where it is.
func (c *memoryClient) serve(args []string) (string, error) {
	passphrase, err := c.secret()
	if err != nil {
		return "", err
	}
	defer passphrase.Destroy()
	o := &sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}}
	if c.keys, err = sealedchat.OpenKeyStore(context.Background(), args[0], passphrase,
		o); err != nil {
		return "", err
	}
	up := httptest.NewServer(http.HandlerFunc(memoryUpstream))
	c.gateway, err = sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: up.URL + "/v1",
		AllowUnauthenticated: true, Keys: c.keys})
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() { _ = http.Serve(listener, c.gateway) }()
	_, err = c.gateway.Keys(context.Background())
	return listener.Addr().String(), err
}

func (c *memoryClient) endGateway([]string) (string, error) {
	err := c.gateway.Close()
	c.keys.Close()
	return "", err
}

// configSecrets are a gateway's keys, as its file has them, and what crypto/hpke and crypto/ed25519
// make of them.
func configSecrets(t testing.TB, dir string, passphrase []byte) (all []testkit.MemorySecret) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "keystore.json"))
	if err != nil {
		t.Fatal(err)
	}
	_, _, body := unlockFile(t, text, passphrase)
	add := func(row string, b []byte) {
		all = append(all, testkit.MemorySecret{Row: row, Name: row, Bytes: b})
	}
	for _, k := range body.ConfigKeys {
		if k.KEM == ohttp.X25519 {
			add(rowX25519, k.Seed)
			continue
		}
		h := sha3.NewSHAKE256() // draft-connolly-cfrg-xwing-kem, section 5.2
		_, _ = h.Write(k.Seed)
		pq, scalar := make([]byte, 64), make([]byte, 32)
		_, _ = h.Read(pq)
		_, _ = h.Read(scalar)
		add(rowXWing, k.Seed)
		add(rowMLKEM, pq)
		add(rowScalar, scalar)
	}
	add(rowSigner, body.Signer)
	expanded := sha512.Sum512(body.Signer) // RFC 8032, section 5.1.6
	add(rowSignature, expanded[32:])
	if len(all) != len(configRows) {
		t.Fatalf("the file has %d keys", len(body.ConfigKeys))
	}
	return all
}

// TestProcessMemoryOfGateway has a gateway make its keys for Oblivious HTTP, sign lists and open 20
// requests, and reads its memory from outside.
func TestProcessMemoryOfGateway(t *testing.T) {
	testkit.NeedLocked(t, 1<<20)
	if underRace {
		t.Skip("what is measured is the ordinary build")
	}
	dir, passphrase := filepath.Join(t.TempDir(), "store"), randomText(40)
	writeKeyStore(t, dir, passphrase, testkit.Key(t, "rsa-2048"))
	p := startMemoryProcess(t, "client")
	base := "http://" + p.tell("serve "+dir, passphrase)
	g := &gatewayMemory{memoryRun: &memoryRun{memoryProcess: p},
		search: testkit.NewSecretSearch(configSecrets(t, dir, passphrase))}
	collect := "scrub"
	if runtimeSecret {
		collect = "gc"
	}

	loaded := g.look("loaded")
	for _, row := range configRows[:len(configRows)-1] { // crypto/ed25519 alone knows the last
		if row != rowMLKEM && loaded.locked[row].full == 0 {
			t.Errorf("control: %q is not found in locked memory", row)
		}
	}
	start := time.Now()
	g.use(base)
	signed := 1 + int(time.Since(start)/time.Second+1) // lists, one a second at most
	used := g.look("20 requests")
	p.tell(collect)
	collected := g.look(collect)
	p.tell("end")
	closed := g.look("closed")
	p.tell(collect)
	gone := g.look("closed, " + collect)
	columns := []*memoryCounts{loaded, used, collected, closed, gone}
	t.Log(configTable(columns))
	saveHits(t, columns)
	for _, row := range configRows {
		want := memoryCount{}
		if row == rowMLKEM {
			want.full = 1 // an array inside crypto/hpke's key
		}
		if n := collected.unlocked[row]; n != want {
			t.Errorf("%s: %s of %q, want %s%s", collected.name, n, row, want,
				collected.listing(row))
		}
		if n, m := closed.unlocked[row], collected.unlocked[row]; n.total() > m.total() {
			t.Errorf("%s: %s of %q, before it were %s%s", closed.name, n, row, m,
				closed.listing(row))
		}
		if n, m := gone.unlocked[row], gone.locked[row]; n.total()+m.total() > 0 {
			t.Errorf("%s: %s of %q, and %s in locked memory, want none%s", gone.name, n, row, m,
				gone.listing(row))
		}
		// What loading leaves does not grow with the requests; each list that is signed leaves a
		// copy.
		most := loaded.unlocked[row].total()
		if row == rowSigner || row == rowSignature {
			most += signed
		}
		if n := used.unlocked[row]; n.total() > most {
			t.Errorf("%s: %s of %q, want %d at most%s", used.name, n, row, most, used.listing(row))
		}
	}
}

type gatewayMemory struct {
	*memoryRun
	search *testkit.SecretSearch
}

func (g *gatewayMemory) look(name string) *memoryCounts { return g.column(name, g.search) }

// use has the list asked for, and requests opened.
func (g *gatewayMemory) use(base string) {
	g.t.Helper()
	for range 5 {
		resp, err := http.Get(base + "/.well-known/ohttp-gateway")
		if err != nil {
			g.t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.Header.Get("Ohttp-Keys-Signature") == "" {
			g.t.Fatal(resp.Status)
		}
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: base, Trust: sealedchat.TrustHTTPS(), InsecureAllowHTTP: true,
		Protocol: sealedchat.ProtocolOHTTP,
	})
	if err != nil {
		g.t.Fatal(err)
	}
	defer client.Close()
	for range memoryRounds {
		body := sealedchat.NewSecret(
			[]byte(`{"model":"m","messages":[{"role":"user","content":"x"}]}`))
		answer, err := client.Complete(g.t.Context(), body)
		if err != nil {
			g.t.Fatal(err)
		}
		answer.Body.Destroy()
		body.Destroy()
	}
}

// configTable is memoryTable for these rows.
func configTable(columns []*memoryCounts) string {
	var b strings.Builder
	for _, row := range configRows {
		fmt.Fprintf(&b, "\n| %-26s", row)
		for _, c := range columns {
			fmt.Fprintf(&b, " | %s: %s (%s)", c.name, c.unlocked[row], c.locked[row])
		}
		b.WriteString(" |")
	}
	return b.String()
}
