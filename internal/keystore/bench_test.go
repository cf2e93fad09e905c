// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// BenchmarkConfigRotation is what the hourly rotation costs a gateway, with as many configurations
// as there are then: those in use and those in their grace. It reports the CPU of the process, the
// sweeps of its garbage included. With a file the whole of it is opened, sealed and synced; nothing
// derives a key from the passphrase.
func BenchmarkConfigRotation(b *testing.B) {
	for _, where := range []string{"memory", "file"} {
		b.Run(where, func(b *testing.B) {
			var s *Store
			if where == "file" { // with an RSA key in it, as most have
				s, _ = createWeak(b, storeDir(b), nil)
			} else {
				s, _ = weakStore(b, nil)
			}
			if _, err := s.Configs(b.Context()); err != nil {
				b.Fatal(err)
			}
			before := testkit.CPUTime()
			for b.Loop() {
				err := s.change(b.Context(), func(body *keyfile.Body) error {
					if n := len(body.ConfigKeys); n > 4 {
						body.ConfigKeys = body.ConfigKeys[n-4:] // the others' grace is over
					}
					return s.replaceConfigs(body, wallTime())
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			cpu := testkit.CPUTime() - before
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}
