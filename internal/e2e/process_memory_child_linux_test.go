// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// The processes that TestProcessMemory starts. They use the public API alone, and what they are
// told about secrets comes through a pipe into memory of their own that is wiped: none is in their
// environment, their arguments or their tests.

const (
	memoryRoleVar = "SEALEDCHAT_TEST_MEMORY_ROLE"
	controlFD     = 3 // commands in
	reportFD      = 4 // one line out for each
	scratchSize   = 1 << 20
)

// TestProcessMemoryChild is what a process does that another test has started.
func TestProcessMemoryChild(t *testing.T) {
	switch role := os.Getenv(memoryRoleVar); role {
	case "client":
		(&memoryClient{scratch: newScratch()}).run()
	case "gateway":
		memoryGateway()
	case "":
		t.Skip("it is for the tests that start processes")
	default:
		t.Fatal(role)
	}
}

// newScratch maps memory outside the Go heap.
func newScratch() []byte {
	b, err := syscall.Mmap(-1, 0, scratchSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		panic(err)
	}
	return b
}

// memoryClient obeys commands: a line with a name and arguments, for some followed by a secret,
// which is a length of four bytes, big-endian, and so many bytes. It answers each with one line,
// "ok …" or "failed …".
type memoryClient struct {
	scratch []byte
	keys    *sealedchat.KeyStore
	client  *sealedchat.SecureCompletionClient
	apiKey  *sealedchat.Secret
	stop    []chan struct{}
	keep    [][]byte
	gateway *sealedchat.Gateway
}

func (c *memoryClient) run() {
	commands := map[string]func(args []string) (string, error){
		"open": c.open, "warm": c.warm, "round": c.round, "import": c.importPEM,
		"idle": c.idle, "gc": c.gc, "scrub": c.scrub, "close": c.close,
		"storm": c.storm, "churn": c.churn, "fragment": c.fragment, "calm": c.calm,
		"deep": c.deep, "plant": c.plant, "allow": c.allowCores, "abort": c.abort,
		"serve": c.serve, "relay": c.relay, "end": c.endGateway, "rest": c.rest,
	}
	for {
		line, err := readLine()
		if err != nil {
			return // the parent has gone
		}
		name, args, _ := strings.Cut(line, " ")
		said, err := commands[name](strings.Fields(args))
		if err != nil {
			report("failed %s: %v", name, err)
			continue
		}
		report("ok %s", said)
	}
}

func report(format string, args ...any) {
	_, _ = syscall.Write(reportFD, fmt.Appendf(nil, format+"\n", args...))
}

// readLine reads byte by byte: a buffer would keep what follows.
func readLine() (string, error) {
	var line []byte
	var b [1]byte
	for {
		if err := readFull(b[:]); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

func readFull(b []byte) error {
	for len(b) > 0 {
		n, err := syscall.Read(controlFD, b)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			b = b[n:]
		}
	}
	return nil
}

// bytes reads a secret into the scratch memory. The caller wipes it.
func (c *memoryClient) bytes() ([]byte, error) {
	var size [4]byte
	if err := readFull(size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > scratchSize {
		return nil, fmt.Errorf("a secret of %d bytes", n)
	}
	return c.scratch[:n], readFull(c.scratch[:n])
}

func (c *memoryClient) secret() (*sealedchat.Secret, error) {
	b, err := c.bytes()
	if err != nil {
		return nil, err
	}
	return sealedchat.NewSecret(b), nil
}

// memoryProtocols are the ways to configure a client, by name.
var memoryProtocols = map[string]func(*sealedchat.Config){
	"v1":    func(*sealedchat.Config) {},
	"ohttp": func(c *sealedchat.Config) { c.Protocol = sealedchat.ProtocolOHTTP },
}

// open DIR URL PIN PROTOCOL, then the passphrase and the API key.
func (c *memoryClient) open(args []string) (string, error) {
	passphrase, err := c.secret()
	if err != nil {
		return "", err
	}
	defer passphrase.Destroy()
	if c.apiKey, err = c.secret(); err != nil {
		return "", err
	}
	o := &sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}}
	if c.keys, err = sealedchat.OpenKeyStore(context.Background(), args[0], passphrase, o); err != nil {
		return "", err
	}
	cfg := sealedchat.Config{
		BaseURL: args[1], Trust: sealedchat.Pin(args[2]), Keys: c.keys, APIKey: c.apiKey, InsecureAllowHTTP: true, MaxRetries: -1,
	}
	memoryProtocols[args[3]](&cfg)
	c.client, err = sealedchat.NewSecureCompletionClient(cfg)
	return "", err
}

// import, then a PEM file.
func (c *memoryClient) importPEM([]string) (string, error) {
	b, err := c.bytes()
	if err != nil {
		return "", err
	}
	defer clear(b)
	_, err = c.keys.ImportPEM(context.Background(), b, nil)
	return "", err
}

// rest has the key store seal something for the disk, and open it.
func (c *memoryClient) rest([]string) (string, error) {
	sealed, err := c.keys.Seal("label", []byte("content"))
	if err != nil {
		return "", err
	}
	_, err = c.keys.Open("label", sealed)
	return "", err
}

func (c *memoryClient) warm([]string) (string, error) {
	return "", c.client.Warm(context.Background())
}

// round, then the request's JSON.
func (c *memoryClient) round([]string) (string, error) {
	body, err := c.secret()
	if err != nil {
		return "", err
	}
	defer body.Destroy()
	answer, err := c.client.Complete(context.Background(), body)
	if err != nil {
		return "", err
	}
	defer answer.Body.Destroy()
	return fmt.Sprint(answer.Body.Len()), nil
}

// deep KIB, then the request's JSON: a round on a new goroutine that had so much of its stack in
// use before, with a collection meanwhile, which makes such a stack smaller.
func (c *memoryClient) deep(args []string) (said string, err error) {
	kib, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		useStack(kib)
		go func() {
			time.Sleep(300 * time.Microsecond) // about when the session key is wrapped
			runtime.GC()
		}()
		said, err = c.round(nil)
	}()
	<-done
	return said, err
}

//go:noinline
func useStack(kib int) {
	var frame [1 << 10]byte
	if kib > 0 {
		useStack(kib - 1)
	}
	runtime.KeepAlive(&frame)
}

func (c *memoryClient) idle([]string) (string, error) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return fmt.Sprintf("%d, %d", m.HeapInuse>>10, m.NumGC), nil
}

func (c *memoryClient) gc([]string) (string, error) {
	runtime.GC()
	return "", nil
}

func (c *memoryClient) scrub([]string) (string, error) {
	sealedchat.ScrubHeap()
	return "", nil
}

func (c *memoryClient) close([]string) (string, error) {
	err := c.client.Close()
	c.keys.Close()
	c.apiKey.Destroy()
	return "", err
}

// beside runs work over and over until calm is called.
func (c *memoryClient) beside(work func()) (string, error) {
	stop := make(chan struct{})
	c.stop = append(c.stop, stop)
	go func() {
		for {
			select {
			case <-stop:
				stop <- struct{}{}
				return
			default:
				work()
			}
		}
	}()
	return "", nil
}

func (c *memoryClient) storm([]string) (string, error) { return c.beside(runtime.GC) }

func (c *memoryClient) churn([]string) (string, error) {
	var kept [64][]byte
	n := 0
	return c.beside(func() {
		n++
		kept[n%len(kept)] = make([]byte, 16<<(n%10))
	})
}

func (c *memoryClient) calm([]string) (string, error) {
	for _, stop := range c.stop {
		stop <- struct{}{}
		<-stop
	}
	c.stop = nil
	return "", nil
}

// fragment leaves a heap of 64 MB with holes of all sizes.
func (c *memoryClient) fragment([]string) (string, error) {
	n := 0
	for total := 0; total < 128<<20; n++ {
		b := make([]byte, 16+n*37%8000)
		total += len(b)
		if n%2 == 0 {
			c.keep = append(c.keep, b)
		}
	}
	runtime.GC()
	return "", nil
}

// memoryPlantKinds are the keys of memoryPlants, in the order to try them in: what other copies
// leave in passing would hide a missed fragment.
var memoryPlantKinds = []string{"fragment", "heap", "limbs", "stack", "data", "mapped", "locked"}

// memoryPlants are ways to leave a secret lying about; each leaves one copy, or one fragment.
var memoryPlants = map[string]func(secret []byte){
	"heap": func(b []byte) {
		copied := make([]byte, len(b)+7)
		copy(copied[7:], b) // at an odd address
		plantedHeap = append(plantedHeap, copied)
	},
	"limbs":    func(b []byte) { plantedInts = append(plantedInts, new(big.Int).SetBytes(b)) },
	"fragment": func(b []byte) { plantedHeap = append(plantedHeap, append([]byte(nil), b[len(b)/2-8:len(b)/2+8]...)) },
	"stack":    plantOnStack,
	"data":     func(b []byte) { plantedSize += 1 + copy(plantedData[plantedSize:], b) },
	"mapped":   func(b []byte) { copy(newScratch(), b) },
	"locked":   func(b []byte) { copy(lockedPage(), b) },
	"locked and not dumped": func(b []byte) {
		page := lockedPage()
		const dontDump = 16 // MADV_DONTDUMP
		if err := syscall.Madvise(page, dontDump); err != nil {
			panic(err)
		}
		copy(page, b)
	},
}

func lockedPage() []byte {
	page := newScratch()[:os.Getpagesize()]
	if err := syscall.Mlock(page); err != nil {
		panic(err)
	}
	return page
}

var (
	plantedHeap [][]byte
	plantedInts []*big.Int
	plantedData [64 << 10]byte
	plantedSize int
)

// plantOnStack parks a goroutine with the secret in its frame.
func plantOnStack(b []byte) {
	ready := make(chan struct{})
	go func() {
		var frame [8 << 10]byte // fixed size, so that it is on the stack, which has grown before the secret comes
		n := copy(frame[:], b)
		ready <- struct{}{}
		<-ready
		plantedSize += int(frame[n-1])
	}()
	<-ready
}

// plant KIND, then a secret.
func (c *memoryClient) plant(args []string) (string, error) {
	b, err := c.bytes()
	if err != nil {
		return "", err
	}
	defer clear(b)
	memoryPlants[strings.Join(args, " ")](b)
	return "", nil
}

// allowCores undoes the limit that memguard sets, as far as it may.
func (c *memoryClient) allowCores([]string) (string, error) {
	unlimited := ^uint64(0)
	if syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{Cur: unlimited, Max: unlimited}) != nil {
		return "refused", nil
	}
	return "allowed", nil
}

// abort crashes as a Go program does that wants a core file.
func (c *memoryClient) abort([]string) (string, error) {
	quiet, err := syscall.Open(os.DevNull, syscall.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	debug.SetTraceback("crash")
	if err := syscall.Dup3(quiet, 2, 0); err != nil { // the trace of all goroutines
		return "", err
	}
	return "", syscall.Kill(os.Getpid(), syscall.SIGABRT)
}

// memoryGateway serves until the parent closes the pipe. First comes a PEM file with its key. It
// says where it is.
func memoryGateway() {
	c := &memoryClient{scratch: newScratch()}
	text, err := c.bytes()
	if err != nil {
		panic(err)
	}
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}})
	if err != nil {
		panic(err)
	}
	if _, err := keys.ImportPEM(context.Background(), text, nil); err != nil {
		panic(err)
	}
	up := httptest.NewServer(http.HandlerFunc(memoryUpstream))
	g, err := sealedchat.NewGateway(sealedchat.GatewayConfig{Upstream: up.URL + "/v1", AllowUnauthenticated: true, Keys: keys})
	if err != nil {
		panic(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() { _ = http.Serve(listener, g) }()
	known, err := g.Keys(context.Background())
	if err != nil {
		panic(err)
	}
	config := known[slices.IndexFunc(known, func(k sealedchat.KeyInfo) bool { return k.Kind == "X-Wing" })]
	report("ok %s %s %s", listener.Addr(), known[0].Fingerprint, config.Fingerprint)
	_, _ = readLine()
}

const memoryAnswerSize = 1500 // characters

// memoryUpstream answers with a text that only who knows the prompt can tell.
func memoryUpstream(w http.ResponseWriter, r *http.Request) {
	var request struct{ Messages []struct{ Content string } }
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || len(request.Messages) != 1 {
		http.Error(w, "no prompt", http.StatusBadRequest)
		return
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"id":"chatcmpl-1","object":"chat.completion","created":1765250382,"model":"test-model","choices":[{"index":0,`+
		`"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],`+
		`"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`, memoryAnswer(request.Messages[0].Content))
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b.Bytes())
}

func memoryAnswer(prompt string) []byte {
	random := make([]byte, memoryAnswerSize/2)
	_, _ = mathrand.NewChaCha8(sha256.Sum256([]byte(prompt))).Read(random)
	return fmt.Appendf(nil, "%x", random)
}
