// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// result is the output of a client process, also of client.py.
type result struct {
	CPU  float64   // ms per request, user and system
	Wall []float64 // ms, of each request
	Peak float64   // MiB, of the process
}

func trusting(file string) (*http.Transport, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	t := sealedchat.DefaultTransport()
	t.TLSClientConfig.RootCAs = x509.NewCertPool()
	t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text)
	return t, nil
}

func newOurs(base, cert string, protocol sealedchat.Protocol,
	keys *sealedchat.KeyStore) (*sealedchat.SecureCompletionClient, error) {
	transport, err := trusting(cert)
	if err != nil {
		return nil, err
	}
	return sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: base, Trust: sealedchat.TrustHTTPS(), Transport: transport, Protocol: protocol,
		Keys: keys,
	})
}

func ask(ctx context.Context, c *sealedchat.SecureCompletionClient, prompt string) error {
	answer, err := c.Chat(ctx, &sealedchat.ChatRequest{Model: "model",
		Messages: []sealedchat.Message{sealedchat.UserMessage(prompt)}})
	if err == nil && answer.Text() != prompt {
		err = errors.New("another answer")
	}
	return err
}

func prompt(n int) string {
	return strings.Repeat("All work and no play makes Jack a dull boy.\n", n/44+1)[:n]
}

// work runs one client: kind, URL, certificate, bytes, concurrency, requests, and perhaps a file
// for a CPU profile.
func work(args []string) error {
	ctx := context.Background()
	size, _ := strconv.Atoi(args[3])
	concurrency, _ := strconv.Atoi(args[4])
	requests, _ := strconv.Atoi(args[5])
	text := prompt(size)
	var chat func(context.Context, string) error
	if args[0] != "naive" {
		protocol := sealedchat.ProtocolEnvelope
		if args[0] == "ohttp" {
			protocol = sealedchat.ProtocolOHTTP
		}
		c, err := newOurs(args[1], args[2], protocol, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		chat = func(ctx context.Context, text string) error { return ask(ctx, c, text) }
	} else {
		transport, err := trusting(args[2])
		if err != nil {
			return err
		}
		c, err := newNaive(args[1], transport)
		if err != nil {
			return err
		}
		chat = c.chat
	}
	if err := chat(ctx, text); err != nil { // warms up
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if len(args) > 6 {
		f, err := os.Create(args[6])
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	r := result{Wall: make([]float64, requests)}
	errs := make([]error, requests)
	next := make(chan int, requests)
	for i := range requests {
		next <- i
	}
	close(next)
	start := cpu()
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			for i := range next {
				begin := time.Now()
				errs[i] = chat(ctx, text)
				r.Wall[i] = ms(time.Since(begin))
			}
		})
	}
	wg.Wait()
	r.CPU = ms(cpu()-start) / float64(requests)
	r.Peak = peak()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// floor compares the CPU time of a warm chat of 1 KiB with that of one RSA-4096 encryption and one
// decryption, in turn in one process, and prints the ratio of the medians. Then it does the same
// with another process that does as much work between the two, as the gateway does in a chat: that
// leaves the caches and predictions of this process cold.
func floor(base, cert string, requests int) error {
	ctx := context.Background()
	c, err := newOurs(base, cert, sealedchat.ProtocolEnvelope, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	other, stop, err := startPairs()
	if err != nil {
		return err
	}
	defer stop()
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return err
	}
	text := prompt(1 << 10)
	if err := ask(ctx, c, text); err != nil {
		return err
	}
	samples := make([][]time.Duration, 3)
	for range requests {
		for i, f := range []func() error{
			func() error { return pair(key, func() error { return nil }) },
			func() error { return pair(key, other) },
			func() error { return ask(ctx, c, text) },
		} {
			start := cpu()
			if err := f(); err != nil {
				return err
			}
			samples[i] = append(samples[i], cpu()-start)
		}
	}
	for _, s := range samples {
		slices.Sort(s)
	}
	chat := float64(samples[2][requests/2])
	fmt.Println(chat/float64(samples[0][requests/2]), chat/float64(samples[1][requests/2]))
	return nil
}

// pair wraps and unwraps an AES key, and calls a function between the two.
func pair(key *rsa.PrivateKey, between func() error) error {
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &key.PublicKey, make([]byte, 32),
		nil)
	if err == nil {
		err = between()
	}
	if err == nil {
		_, err = rsa.DecryptOAEP(sha256.New(), nil, key, wrapped, nil)
	}
	return err
}

// startPairs starts another process that does one pair whenever do is called.
func startPairs() (do func() error, stop func(), err error) {
	cmd := exec.Command(os.Args[0], "pairs")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	turn := make([]byte, 1)
	do = func() error {
		if _, err := in.Write(turn); err != nil {
			return err
		}
		_, err := io.ReadFull(out, turn)
		return err
	}
	return do, func() { _, _ = in.Close(), cmd.Wait() }, nil
}

// pairs is the work of the process that startPairs starts.
func pairs() error {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return err
	}
	turn := make([]byte, 1)
	for {
		if _, err := io.ReadFull(os.Stdin, turn); err != nil {
			return nil // no more turns
		}
		if err := pair(key, func() error { return nil }); err != nil {
			return err
		}
		if _, err := os.Stdout.Write(turn); err != nil {
			return err
		}
	}
}

const passphrase = "correct horse battery staple"

func createStore(dir string) error {
	s := sealedchat.NewSecret([]byte(passphrase))
	store, err := sealedchat.CreateKeyStore(context.Background(), dir, s, nil)
	if err != nil {
		return err
	}
	store.Close()
	return nil
}

// cold opens a key store and gets one answer, measured from the start of main, and then measures
// one PBKDF2 as the key store uses it. It prints both times in ms.
func cold(base, cert, dir string) error {
	start := time.Now()
	ctx := context.Background()
	s := sealedchat.NewSecret([]byte(passphrase))
	store, err := sealedchat.OpenKeyStore(ctx, dir, s,
		&sealedchat.KeyStoreOptions{Rotation: sealedchat.Rotation{Every: -1}})
	if err != nil {
		return err
	}
	defer store.Close()
	c, err := newOurs(base, cert, sealedchat.ProtocolEnvelope, store)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := ask(ctx, c, prompt(1<<10)); err != nil {
		return err
	}
	whole := time.Since(start)
	start = time.Now()
	if _, err := pbkdf2.Key(sha256.New, passphrase, make([]byte, 32), 600_000, 32); err != nil {
		return err
	}
	fmt.Println(ms(whole), ms(time.Since(start)))
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peak returns the most memory that this process has had. (ru_maxrss would count that of its
// parent, before exec.)
func peak() float64 {
	status, _ := os.ReadFile("/proc/self/status")
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(after)
	if len(fields) == 0 {
		return 0
	}
	kib, _ := strconv.ParseFloat(fields[0], 64)
	return kib / 1024
}
