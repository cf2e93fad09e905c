// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// A gateway's keys: a new one each week, and the old one opens requests for two hours more. Clients of protocol v1 that
// pinned the key have to be told before.
func ExampleRotation() {
	ctx := context.Background()
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{
		Bits:     2048, // quick to make; 0 = 4096
		Rotation: sealedchat.Rotation{Every: 7 * 24 * time.Hour, Grace: 2 * time.Hour},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	before, err := keys.Public(ctx)
	if err != nil {
		log.Fatal(err)
	}
	if err := keys.Rotate(ctx); err != nil { // now, whatever the age
		log.Fatal(err)
	}
	for _, k := range keys.Keys() {
		fmt.Println(k.Kind, k.Bits, k.Retired.IsZero(), k.Fingerprint == before.Fingerprint())
	}
	fmt.Println(keys.RotationError()) // of the work in the background: for a health check
	// Output:
	// RSA 2048 true false
	// RSA 2048 false true
	// <nil>
}

// A program that would rather know than have its key swapped out asks for locked memory, and may still decide otherwise.
func ExampleMemoryPolicy() {
	logger := slog.New(slog.DiscardHandler) // the program's own
	text := []byte("an-api-key")
	key, err := sealedchat.MemoryRequired.NewSecret(text)
	if errors.Is(err, sealedchat.ErrMemoryLimit) {
		logger.Warn("raise ulimit -l", "error", err)           // with the figures
		key, err = sealedchat.MemoryBestEffort.NewSecret(text) // which NewSecret does as well
	}
	if err != nil {
		log.Fatal(err)
	}
	defer key.Destroy()
	fmt.Println(key.Len(), text[0]) // text is wiped
	// Output: 10 0
}

// What a service tells of itself when it starts.
func ExampleMemoryReport() {
	logger := slog.New(slog.DiscardHandler) // the service's own
	key := sealedchat.NewSecret([]byte("an-api-key"))
	defer key.Destroy()

	report := sealedchat.MemoryReport()
	if !report.AllLocked {
		logger.Warn("secrets may be swapped out", "unlocked", report.Unlocked, "in_use", report.InUse)
	}
	if report.Leaked > 0 {
		logger.Error("secrets were never destroyed", "secrets", report.Leaked)
	}
	fmt.Println(report.InUse >= int64(key.Len()))
	// Output: true
}

// A program that is told to stop (SIGINT, SIGTERM) closes what it has, and ends when that is done. A
// second signal ends it at once, since AfterFunc has given the signals back by then.
func ExampleKeyStore_Close() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keys, err := sealedchat.NewEphemeralKeyStore(nil)
	if err != nil {
		log.Fatal(err)
	}
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() { stop(); keys.Close(); close(closed) })

	stop() // in place of a signal
	<-closed
	fmt.Println("closed")
	// Output: closed
}
