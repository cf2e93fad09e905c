// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/seed-017344ad/sealedchat"
)

// Users who can write to the log can cut lines off its end. That shows against a head that was kept
// where they cannot write.
func ExampleVerifyAuditLog() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	passphrase := sealedchat.NewSecret([]byte("correct horse battery"))
	defer passphrase.Destroy()
	store, err := sealedchat.CreateKeyStore(ctx, filepath.Join(dir, "keys"), passphrase,
		&sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	path := filepath.Join(dir, "log", "audit.log")
	audit, err := sealedchat.OpenAuditLog(ctx, path, store, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, what := range []string{"started", "stopped"} {
		note := sealedchat.Event{Type: sealedchat.EventNote,
			Details: map[string]any{"service": what}}
		if err := audit.Record(ctx, note); err != nil {
			log.Fatal(err)
		}
	}
	kept := audit.Head() // elsewhere: on another machine, or on paper
	if err := audit.Close(); err != nil {
		log.Fatal(err)
	}

	report, err := sealedchat.VerifyAuditLog(ctx, path, store, kept)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Lines, "lines, head found:", report.HeadChecked)

	if err := cutLastLine(path); err != nil {
		log.Fatal(err)
	}
	report, err = sealedchat.VerifyAuditLog(ctx, path, store, "")
	fmt.Println(report.Lines, "line, without a head:", err)
	report, err = sealedchat.VerifyAuditLog(ctx, path, store, kept)
	if errors.Is(err, sealedchat.ErrAuditTampered) {
		fmt.Println("with it:", report.Finding)
	}
	// Output:
	// 2 lines, head found: true
	// 1 line, without a head: <nil>
	// with it: the log was cut off before the expected head
}

// cutLastLine does what attackers do who want to hide their last step.
func cutLastLine(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	end := len(text) - 1
	for end > 0 && text[end-1] != '\n' {
		end--
	}
	return os.Truncate(path, int64(end))
}
