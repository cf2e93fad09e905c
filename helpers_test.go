// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// storedKey is a private copy of a stored test key, which closing a store may wipe.
func storedKey(t testing.TB, name string) *rsa.PrivateKey {
	t.Helper()
	block, _ := pem.Decode(testkit.KeyPEM(t, name))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// storedKeys is a key store around a stored test key.
func storedKeys(t testing.TB, name string) *KeyStore {
	t.Helper()
	s, err := NewEphemeralKeyStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.adopt(storedKey(t, name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// adopt makes key the primary key of a store.
func (s *KeyStore) adopt(key *rsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	_, err = s.ImportPEM(context.Background(), text, nil)
	return err
}

func publicOf(t testing.TB, name string) *PublicKey {
	t.Helper()
	k, err := ParsePublicKey(testkit.PublicPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// seal seals plaintext for k, for tests that change something about the envelope.
func (k *PublicKey) seal(plaintext []byte) (*envelope.Envelope, error) {
	return fakes.Seal(k.rsa, plaintext)
}

func secret(t testing.TB, text string) *Secret {
	t.Helper()
	s := NewSecret([]byte(text))
	t.Cleanup(s.Destroy)
	return s
}

// startGateway runs a gateway with the stored server key in front of upstream. change may be nil.
func startGateway(t testing.TB, upstream http.Handler, change func(*GatewayConfig)) *Gateway {
	t.Helper()
	up := httptest.NewServer(upstream)
	t.Cleanup(up.Close)
	c := GatewayConfig{Upstream: up.URL + "/v1", AllowUnauthenticated: true}
	if change != nil {
		change(&c)
	}
	if c.Keys == nil {
		c.Keys = storedKeys(t, "server-4096")
	}
	return newGateway(t, c)
}

// newGateway makes a gateway that is closed with the test.
func newGateway(t testing.TB, c GatewayConfig) *Gateway {
	t.Helper()
	g, err := NewGateway(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// startClient makes a client with the stored client key for the server at url, plain http allowed.
// change may be nil.
func startClient(t testing.TB, url string, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	c := Config{
		BaseURL: url, Trust: TrustHTTPS(), InsecureAllowHTTP: true,
		MaxRetries: -1, // tests of retries say so
	}
	if change != nil {
		change(&c)
	}
	if c.Keys == nil && c.Protocol != ProtocolOHTTP { // making a key would take seconds
		c.Keys = storedKeys(t, "client-4096")
	}
	client, err := NewSecureCompletionClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// ohttpClient is startClient for Oblivious HTTP.
func ohttpClient(t testing.TB, url string, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return startClient(t, url, func(c *Config) {
		c.Protocol = ProtocolOHTTP
		if change != nil {
			change(c)
		}
	})
}

// directClient is a client of g's without a network between them.
func directClient(t testing.TB, g *fakes.Gateway, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return ohttpClient(t, "https://gateway.test", func(c *Config) {
		c.Transport = fakes.Direct(g)
		if change != nil {
			change(c)
		}
	})
}

// sealedClient is a client of s over an https URL that trusts it. change may be nil.
func sealedClient(t testing.TB, s *fakes.Server, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return startClient(t, "https://server.test", func(c *Config) {
		c.Transport, c.Keys = s, storedKeys(t, "rsa-3072")
		if change != nil {
			change(c)
		}
	})
}

// chatAgain asks, and once more if the server's key has changed, as a program would whose prompts
// may run twice.
func chatAgain(c *SecureCompletionClient) (*ChatResponse, error) {
	answer, err := c.Chat(context.Background(), ask("x"))
	if outer, ok := errors.AsType[*OuterError](err); ok && outer.KeyChanged {
		return c.Chat(context.Background(), ask("x"))
	}
	return answer, err
}

// callsOf are the ways to ask a client.
func callsOf(c *SecureCompletionClient) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Chat": func(ctx context.Context) error {
			_, err := c.Chat(ctx, ask("x"))
			return err
		},
		"Stream": func(ctx context.Context) error {
			for _, err := range c.Stream(ctx, ask("x")) {
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func isServerKeyError(err error) bool {
	_, ok := errors.AsType[*ServerKeyError](err)
	return ok
}

func ask(text string) *ChatRequest {
	return &ChatRequest{Model: "test-model", Messages: []Message{UserMessage(text)}}
}

// Names for testkit's that many tests use.
const (
	fineAnswer = testkit.FineAnswer
	leak       = testkit.Leak
)

type roundTripFunc = testkit.RoundTrip

func answerText(text string) http.HandlerFunc  { return testkit.AnswerText(text) }
func answerWith(replace ...string) string      { return testkit.AnswerWith(replace...) }
func neverUsed(t testing.TB) http.RoundTripper { return testkit.NeverUsed(t) }

func respond(status int, body string, header ...string) *http.Response {
	return testkit.Respond(status, body, header...)
}

// rig is a gateway in a test's rig.
type rig struct {
	*fakes.Rig
	g    *Gateway
	keys *KeyStore
}

// newRig makes a gateway with the stored key rsa-2048. change may be nil.
func newRig(t testing.TB, change func(*GatewayConfig)) *rig {
	t.Helper()
	r := &rig{Rig: &fakes.Rig{T: t}}
	c := GatewayConfig{
		Upstream: "https://upstream.test/v1", UpstreamTransport: r.Rig, Logger: r.Logger(),
		AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"),
	}
	if change != nil {
		change(&c)
	}
	r.g, r.keys = newGateway(t, c), c.Keys
	r.Handler = r.g
	return r
}

const (
	passphrase  = "correct horse battery staple"
	passphrase2 = "another horse, other battery"
)

// These key stores take their keys from the maker that they come with, and their KDF costs nothing.

func weakOptions(t testing.TB, o *KeyStoreOptions) (*keystore.Options, *testkit.Maker) {
	t.Helper()
	if o == nil {
		o = &KeyStoreOptions{}
	}
	options, err := o.engine()
	if err != nil {
		t.Fatal(err)
	}
	m := testkit.NewMaker()
	options.NewKey, options.WeakKDF = m.NewKey, true
	return options, m
}

// weakStore is an ephemeral store.
func weakStore(t testing.TB, o *KeyStoreOptions) (*KeyStore, *testkit.Maker) {
	t.Helper()
	options, m := weakOptions(t, o)
	store, err := keystore.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, m
}

// createWeak is CreateKeyStore.
func createWeak(t testing.TB, dir string, o *KeyStoreOptions) (*KeyStore, *testkit.Maker) {
	t.Helper()
	options, m := weakOptions(t, o)
	store, err := keystore.Create(t.Context(), dir, secret(t, passphrase), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, m
}

// tryWeak is OpenKeyStore.
func tryWeak(t testing.TB, dir, pass string, o *KeyStoreOptions) (*KeyStore, error) {
	t.Helper()
	options, _ := weakOptions(t, o)
	store, err := keystore.Open(t.Context(), dir, secret(t, pass), options)
	if err != nil {
		return nil, err
	}
	t.Cleanup(store.Close)
	return &KeyStore{store}, nil
}

func openWeak(t testing.TB, dir, pass string, o *KeyStoreOptions) *KeyStore {
	t.Helper()
	s, err := tryWeak(t, dir, pass, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// storeDir is the path of a private folder that does not exist yet.
func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "keys") }

// primaryOf is the fingerprint of the key in use.
func primaryOf(t testing.TB, s *KeyStore) string {
	t.Helper()
	k, err := s.Public(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return k.Fingerprint()
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
	if err != nil && (strings.Contains(err.Error(), passphrase) ||
		strings.Contains(err.Error(), passphrase2)) {
		t.Errorf("%s: the passphrase is in the error", what)
	}
}

// bodyOnDisk opens a keystore file as it lies on the disk.
func bodyOnDisk(t testing.TB, dir, pass string) (*keyfile.Body, *keyfile.File) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "keystore.json"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := keyfile.ParseHeader(text)
	if err != nil {
		t.Fatal(err)
	}
	k, err := f.Unlock([]byte(pass), keyfile.AllowWeak)
	if err != nil {
		t.Fatal(err)
	}
	body, err := keyfile.Open(f, k)
	if err != nil {
		t.Fatal(err)
	}
	return body, f
}

// settle lets time pass, and everything happen that is due by then.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// keyInUse is the RSA key that a request would take now.
func keyInUse(t testing.TB, s *KeyStore) *keystore.Key {
	t.Helper()
	k, err := s.store.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.Release()
	return k
}

// wiped reports whether a key is gone, and its numbers with it.
func wiped(k *keystore.Key) bool { return k.IsWiped() }

// listedIDs are the ids and KEMs in the order of the list.
func listedIDs(t testing.TB, s *KeyStore) (ids []string) {
	t.Helper()
	configs, err := s.store.Configs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		ids = append(ids, fmt.Sprintf("%s %d", ohttp.Kind(c.KEM()), c.ID()))
	}
	return ids
}

func passwordOf(t testing.TB, c testkit.Case) *Secret {
	if c.Password == nil {
		return nil
	}
	return secret(t, *c.Password)
}

const (
	childVar    = "SEALEDCHAT_TEST_CHILD" // which of storeChildren this process is to be
	childDirVar = "SEALEDCHAT_TEST_DIR"
	childArgVar = "SEALEDCHAT_TEST_ARG"
	longVar     = "SEALEDCHAT_LONG" // "1": tests with real time take longer
)

// storeChildren are what the test binary does when it runs itself again.
var storeChildren = map[string]func(t *testing.T, dir, arg string){
	"purged": childPurged,
}

// TestStoreChild is what other tests run in processes of their own.
func TestStoreChild(t *testing.T) {
	name := os.Getenv(childVar)
	if name == "" {
		t.Skip("it is for the tests that start processes")
	}
	storeChildren[name](t, os.Getenv(childDirVar), os.Getenv(childArgVar))
}

// child is a process that is not started yet. It is killed when the test ends.
func child(t testing.TB, name, dir, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestStoreChild$", "-test.v=false",
		"-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+name, childDirVar+"="+dir, childArgVar+"="+arg)
	cmd.Stderr = os.Stderr
	return cmd
}
