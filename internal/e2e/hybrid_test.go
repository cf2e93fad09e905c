// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"crypto/fips140"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestPublicKeyEqual(t *testing.T) {
	a, again, b := publicOf(t, "server-4096"), publicOf(t, "server-4096"),
		publicOf(t, "client-4096")
	var none *sealedchat.PublicKey
	for i, c := range []struct {
		x, y *sealedchat.PublicKey
		want bool
	}{{a, a, true}, {a, again, true}, {a, b, false}, {b, a, false}, {a, none, false},
		{none, a, false}, {none, none, true}, {none, nil, true}} {
		if c.x.Equal(c.y) != c.want {
			t.Errorf("%d: Equal is not %v", i, c.want)
		}
	}
	pemText := a.PEM()
	clear(pemText)
	if !bytes.Equal(a.PEM(), testkit.PublicPEM(t, "server-4096")) {
		t.Error("the slice from PEM() is not the caller's own")
	}
}

// fipsChild marks the process that TestFIPS140Only starts.
const fipsChild = "SEALEDCHAT_TEST_FIPS_CHILD"

// Sealing, opening and a whole chat keep to approved algorithms, in the form in which the FIPS
// module offers them: under fips140=only the standard library refuses everything else. The setting
// is read when a process starts.
func TestFIPS140Only(t *testing.T) {
	if os.Getenv(fipsChild) == "" {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(testkit.Within(t, time.Minute), program,
			"-test.run=^TestFIPS140Only$", "-test.count=1", "-test.v")
		cmd.Env = append(os.Environ(), fipsChild+"=1", "GODEBUG=fips140=only")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "FIPS: chat done") {
			t.Errorf("under fips140=only: %v\n%s", err, out)
		}
		return
	}
	if !fips140.Enforced() {
		t.Fatal("fips140=only has no effect")
	}
	for _, name := range []string{"rsa-2048", "rsa-3072", "server-4096"} {
		key, err := hybrid.NewPrivateKey(testkit.Key(t, name))
		if err != nil {
			t.Fatal(err)
		}
		sealed := func() *envelope.Envelope {
			e, err := fakes.Seal(key.Public(), []byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		got, err := key.Open(sealed(), nil)
		if err != nil || string(got) != "hello" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		bad := sealed()
		clear(bad.WrappedKey)
		if _, err := key.Open(bad, nil); err != sealedchat.ErrDecryption {
			t.Errorf("%s: error %v", name, err)
		}
	}
	key := secret(t, "sk-test")
	authenticate, err := sealedchat.AuthenticateKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	gateway := startGateway(t, testkit.AnswerText("Paris"), func(c *sealedchat.GatewayConfig) {
		c.Authenticate = authenticate
	})
	srv := testkit.TLSServer(t, gateway)
	client := startClient(t, srv.URL, func(c *sealedchat.Config) {
		c.Transport, c.APIKey = testkit.ClientTransport(srv), key
	})
	resp, err := client.Chat(testkit.Within(t, 30*time.Second),
		ask("What is the capital of France?"))
	if err != nil || resp.Text() != "Paris" {
		t.Fatalf("chat: %v", err)
	}
	fresh, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if _, err := fresh.Public(testkit.Within(t, 30*time.Second)); err != nil {
		t.Errorf("generating a key: %v", err)
	}
	t.Log("FIPS: chat done")
}
