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

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

func median(values []float64) float64 { return quantile(values, 0.5) }

// compared lists the ratios that are of interest.
func compared(client, other string) bool {
	return client == "ours" && (other == "naive" || other == "python") ||
		client == "ohttp" && other == "ours"
}

func sizeName(n int) string { return map[int]string{1 << 10: "1 KiB", 1 << 20: "1 MiB"}[n] }

func (b *bench) report(dir string) error {
	var t strings.Builder
	fmt.Fprintf(&t, `# Results

Made by `+"`cd bench/peers && go run . -python PYTHON`"+`: clients in turn against one
gateway in another process, https on loopback, answers as long as prompts. "ours" is this package
over envelope version 1, "ohttp" over Oblivious HTTP. %s, %s/%s, %d CPUs, %d rounds of %d requests
(%d of 1 MiB) for each row, warmed up. CPU is user and system time of the client's process per
request. Compare only rows of one run: times depend on the machine and on its other work.

httpx made a new TLS context for every connection from SSL_CERT_FILE, which held only the
certificate of the gateway: its CA handling cannot do less work than that.`, runtime.Version(),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), b.rounds, b.requests, b.bigRequests)
	if len(b.bundle) > 0 {
		fmt.Fprintf(&t,
			" With certifi's bundle, its default,\na request of 1 KiB took %.0f ms of CPU.",
			median(b.bundle))
	}
	t.WriteString("\n\n| prompt | at a time | client | CPU ms | wall ms, median | p99 " +
		"| connections per request | key fetches | peak MiB |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range b.rows {
		fmt.Fprintf(&t, "| %s | %d | %s | %.2f | %.1f | %.1f | %.2f | %.2f | %.0f |\n",
			sizeName(r.size), r.concurrency, r.client, median(r.cpu),
			median(r.wall), quantile(r.wall, 0.99), r.connections, r.fetch, median(r.peak))
	}
	t.WriteString("\n![CPU per request](peers.svg)\n\n## Ratios\n\n| what | here |\n|---|---|\n")
	for _, r := range b.rows {
		for _, o := range b.rows {
			if o.size != r.size || o.concurrency != r.concurrency || !compared(r.client, o.client) {
				continue
			}
			fmt.Fprintf(&t, "| CPU: %s against %s, %s, %d at a time | %.3f |\n", r.client, o.client,
				sizeName(r.size), r.concurrency, median(r.cpu)/median(o.cpu))
			if r.concurrency == 1 {
				fmt.Fprintf(&t, "| peak memory: %s against %s, %s | %.2f |\n", r.client, o.client,
					sizeName(r.size), median(r.peak)/median(o.peak))
			}
		}
		if len(b.bundle) > 0 && r.client == "ours" && r.size == 1<<10 && r.concurrency == 1 {
			fmt.Fprintf(&t,
				"| CPU: ours against python with httpx's default bundle, %s, %d at a time | "+
					"%.3f |\n", sizeName(r.size), r.concurrency, median(r.cpu)/median(b.bundle))
		}
	}
	fmt.Fprintf(&t,
		"| CPU of a warm chat of 1 KiB against RSA-4096 encryption + decryption, one right after "+
			"the other | %.3f |\n", median(b.floors[0]))
	fmt.Fprintf(&t,
		"| the same, where another process does as much between the two, as the gateway does in "+
			"a chat | %.3f |\n", median(b.floors[1]))
	var over []float64
	for _, c := range b.colds {
		over = append(over, c[0]-c[1])
	}
	fmt.Fprintf(&t,
		"| cold start with a key store on disk, to the first answer, beyond one PBKDF2 (600,000 "+
			"rounds) | %.0f ms |\n", median(over))
	b.reportOwn(&t)
	t.WriteString("\n## Where the time goes\n\nCPU profiles of `ours`, 8 at a time, built with " +
		"GOEXPERIMENT=runtimesecret.\nIn the ordinary build, the code that seals and opens " +
		"holds back the profiler's signal on Linux, so\nthat no signal frame keeps key material.\n")
	for i, name := range []string{"1 KiB", "1 MiB"} {
		fmt.Fprintf(&t, "\n%s:\n\n```\n flat%%%s```\n", name, b.profile[i])
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "peers.svg"), []byte(b.plot()), 0o644); err != nil {
		return err
	}
	fmt.Println(t.String())
	return os.WriteFile(filepath.Join(dir, "RESULTS.md"), []byte(t.String()), 0o644)
}

// reportOwn lists the results of the package's own benchmarks, except times, which depend on the
// machine.
func (b *bench) reportOwn(t *strings.Builder) {
	t.WriteString("\n## Within one process\n\nThe package's own benchmarks, `go test -run '^$' " +
		"-bench .` in internal/hybrid, internal/e2e\nand the root. " +
		"Their comments say what each ratio compares.\n\n" +
		"| benchmark | reports |\n|---|---|\n")
	for _, line := range b.own {
		fields := strings.Fields(line)
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		var metrics []string
		for i := 2; i+1 < len(fields); i += 2 {
			if unit := fields[i+1]; unit != "ns/op" && unit != "MB/s" {
				metrics = append(metrics, fields[i]+" "+unit)
			}
		}
		fmt.Fprintf(t, "| %s | %s |\n", name, strings.Join(metrics, ", "))
	}
}

// plot draws CPU per request on a logarithmic scale.
func (b *bench) plot() string {
	const left, line, wide = 190, 18, 420
	lowest, highest := math.Inf(1), 0.0
	for _, r := range b.rows {
		lowest, highest = min(lowest, median(r.cpu)), max(highest, median(r.cpu))
	}
	lowest /= 2
	colour := map[string]string{"ours": "#1a7f5a", "ohttp": "#3f6fb5", "naive": "#8a8a8a",
		"python": "#c77c2b"}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12">`+"\n", left+wide+90, line*(len(b.rows)+8)+30)
	s.WriteString(`<rect width="100%" height="100%" fill="white"/>` + "\n" +
		`<text x="10" y="20">CPU time of the client per request, ms, logarithmic</text>` + "\n")
	y := 34
	for i, r := range b.rows {
		if i > 0 && (b.rows[i-1].concurrency != r.concurrency || b.rows[i-1].size != r.size) {
			y += line / 2
		}
		width := wide * math.Log(median(r.cpu)/lowest) / math.Log(highest/lowest)
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s, %d at a time, %s</text>`, left-8,
			y+13, sizeName(r.size), r.concurrency, r.client)
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="%.0f" height="%d" fill="%s"/>`, left, y+2,
			width, line-4, colour[r.client])
		fmt.Fprintf(&s, `<text x="%.0f" y="%d">%.2f</text>`+"\n", left+width+6, y+13, median(r.cpu))
		y += line
	}
	return s.String() + "</svg>\n"
}
