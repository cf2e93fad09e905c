// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

// besideFlags are the flags of the comparison side by side.
type besideFlags struct {
	ohttp                  bool
	sides, chat            string
	cpuProfile, memProfile string
	streams                int
}

func (b *besideFlags) register(flags *flag.FlagSet) {
	flags.BoolVar(&b.ohttp, "ohttp", false,
		"compare Oblivious HTTP with openpcc/ohttp and a plain proxy, in one process")
	flags.StringVar(&b.sides, "sides", "",
		"with -ohttp: only these, of plain,openpcc,here; nothing is written then")
	flags.StringVar(&b.chat, "chat", "",
		`with -ohttp: only this chat, such as "1 MiB"; nothing is written then`)
	flags.IntVar(&b.streams, "streams", openStreams,
		"with -ohttp: how many streams are open at once; 0: their memory is not measured")
	flags.StringVar(&b.cpuProfile, "cpuprofile", "", "with -ohttp: a file for a CPU profile; "+
		"it shows the cryptography if built with GOEXPERIMENT=runtimesecret")
	flags.StringVar(&b.memProfile, "memprofile", "",
		"with -ohttp: a file for a profile of what was allocated")
}

func (b *besideFlags) run(out string, small bool, rounds int) error {
	dir, err := os.MkdirTemp("", "peers")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// the least of few rounds says little on a machine with other work
	s := &sideBySide{rounds: max(rounds, 7), divisor: 1, streams: b.streams,
		cpuProfile: b.cpuProfile, memProfile: b.memProfile}
	if small {
		s.rounds, s.divisor, s.streams = 2, 10, min(b.streams, 60)
	}
	if b.sides != "" {
		s.only = strings.Split(b.sides, ",")
	}
	if err := s.choose(b.chat); err != nil {
		return err
	}
	if err := s.run(dir); err != nil {
		return err
	}
	fmt.Println(s.section())
	if b.sides != "" || b.chat != "" {
		return nil
	}
	return s.write(out)
}
