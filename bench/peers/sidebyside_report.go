// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

const (
	sideHeading = "## Oblivious HTTP beside others"
	sideRatios  = "Ratios of the CPU time:"
)

func least(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	return slices.Min(values)
}

// section is what RESULTS.md says about it.
func (s *sideBySide) section() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%s\n\n", sideHeading)
	fmt.Fprintf(&t, `Made by `+"`cd bench/peers && go run . -ohttp`"+`: client, gateway, TLS (HTTP/2)
and upstream in one process, over loopback. "plain" is httputil.ReverseProxy and seals nothing.
"openpcc" is client and gateway of github.com/openpcc/ohttp v0.0.80, with X25519 and AES-256-GCM.
"here" is this package, with X-Wing and AES-256-GCM. Every side sends the same bytes through an
http.Client to the same upstream, and reads the answer to its end. Only "here" checks what it
carries: that the request is the JSON of a chat, and that the answer is whole.

A chat of 1 MiB has a prompt of 1 MiB and an answer of 1 MiB, of known length. The caller and the
upstream make JSON and read it, with encoding/json. 500 events answer a prompt of 1 KiB; each has
some 200 bytes, and the upstream flushes it as soon as it is made. With "bytes alone" caller and
upstream hand over bytes that were made before, and look at none of them.

The sides take turns within each of %d rounds. CPU is user and system time of the process for one
chat, the least of the rounds. Allocated is the median, of the whole process as well. The heap is
small, so that collections are frequent: in a process with a large one, what is allocated costs
less. %s, %s/%s, %d CPUs.

`, s.rounds, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	t.WriteString("| chat | plain, ms | openpcc | here | plain, MB allocated | openpcc | here |\n" +
		"|---|---|---|---|---|---|---|\n")
	for _, sh := range s.shapes {
		fmt.Fprintf(&t, "| %s | %.2f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", sh.name,
			least(sh.cpu[plain]), least(sh.cpu[openpcc]), least(sh.cpu[here]),
			median(sh.allocated[plain]), median(sh.allocated[openpcc]), median(sh.allocated[here]))
	}
	fmt.Fprintf(&t, "\n![CPU per chat](ohttp.svg)\n\n%s\n\n", sideRatios)
	t.WriteString("| chat | here / openpcc | wanted | here / plain | wanted |\n" +
		"|---|---|---|---|---|\n")
	for _, sh := range s.shapes {
		fmt.Fprintf(&t, "| %s | %.2f | %s | %.2f | %s |\n", sh.name,
			least(sh.cpu[here])/least(sh.cpu[openpcc]), most(sh.overOpenPCC),
			least(sh.cpu[here])/least(sh.cpu[plain]), most(sh.overPlain))
	}
	t.WriteString("\n| memory | plain | openpcc | here | wanted |\n|---|---|---|---|---|\n")
	for _, sh := range s.shapes {
		if sh.wantMB > 0 {
			fmt.Fprintf(&t, "| allocated by a chat of %s, MB | %.1f | %.1f | %.1f | %s |\n",
				sh.name, median(sh.allocated[plain]), median(sh.allocated[openpcc]),
				median(sh.allocated[here]), most(sh.wantMB))
		}
	}
	if s.streams > 0 {
		fmt.Fprintf(&t, "| live memory of a stream, both ends, %d at once, KiB | %.0f | %.0f | "+
			"%.0f | %s |\n", s.streams, s.memory[plain], s.memory[openpcc], s.memory[here],
			most(wantStreamKiB))
	}
	t.WriteString("\nLive memory is heap, stacks and locked memory after four collections.\n")
	return t.String()
}

// most is a limit that is wanted.
func most(limit float64) string {
	if limit == 0 {
		return ""
	}
	return fmt.Sprintf("≤ %.3g", limit)
}

// write puts the section into RESULTS.md in dir, in place of the one before, and draws the plot.
func (s *sideBySide) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, "RESULTS.md")
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.WriteFile(file, []byte(withSection(string(text), s.section())), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ohttp.svg"), []byte(s.plot()), 0o644)
}

// withSection replaces the section in text, or puts it at the end.
func withSection(text, section string) string {
	before, after, found := strings.Cut(text, sideHeading+"\n")
	if !found {
		if text != "" {
			text = strings.TrimRight(text, "\n") + "\n\n"
		}
		return text + section
	}
	if i := strings.Index(after, "\n## "); i >= 0 {
		section += after[i:]
	}
	return before + section
}

// plot draws the CPU time in parts of openpcc's.
func (s *sideBySide) plot() string {
	const left, line, wide, unit = 190, 18, 420, 300
	colour := map[string]string{plain: "#8a8a8a", openpcc: "#c77c2b", here: "#3f6fb5"}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12">`+"\n", left+wide+90,
		(line*3+9)*len(s.shapes)+40)
	b.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n" +
		`<text x="10" y="20">CPU time of one chat, both ends, in parts of openpcc's</text>` + "\n")
	y := 34
	for _, sh := range s.shapes {
		for _, name := range []string{plain, openpcc, here} {
			ratio := least(sh.cpu[name]) / least(sh.cpu[openpcc])
			width := min(ratio*unit, wide)
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s, %s</text>`, left-8, y+13,
				sh.name, name)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/>`, left, y+2,
				width, line-4, colour[name])
			fmt.Fprintf(&b, `<text x="%.0f" y="%d">%.2f</text>`+"\n", left+width+6, y+13, ratio)
			y += line
		}
		y += line / 2
	}
	return b.String() + "</svg>\n"
}
