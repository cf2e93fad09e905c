// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadmeCode finds every line of the README's Go code in code that is compiled, so that it cannot rot.
func TestReadmeCode(t *testing.T) {
	compiled := make(map[string]bool)
	for _, pattern := range []string{"example_test.go", "examples/openai-sdk/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				compiled[strings.TrimSpace(line)] = true
			}
		}
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) < 3 {
		t.Fatalf("%d blocks of Go code, want 3 or more", len(blocks))
	}
	for _, block := range blocks {
		for line := range strings.Lines(block[1]) {
			if line = strings.TrimSpace(line); line != "" && line != "…" && !compiled[line] {
				t.Errorf("not in any compiled file: %s", line)
			}
		}
	}
}

// TestReadmeLinks finds the files that the documents point to.
func TestReadmeLinks(t *testing.T) {
	links := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	for _, doc := range []string{"README.md", "SECURITY.md", "SPEC.md", "CHANGELOG.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range links.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(link[1]); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

// TestSecurityNames finds the tests that SECURITY.md names.
func TestSecurityNames(t *testing.T) {
	known := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, f := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			known[f[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z0-9]\w+`)
	names := name.FindAllString(string(text), -1)
	if len(names) < 20 {
		t.Fatalf("%d names, want 20 or more", len(names))
	}
	for _, name := range names {
		if !known[name] {
			t.Errorf("there is no %s", name)
		}
	}
	for _, heading := range []string{"Who attacks, and what stops him", "Where the documents that this follows were wrong"} {
		_, section, _ := strings.Cut(string(text), "\n## "+heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		rows := 0
		for line := range strings.Lines(section) {
			if !strings.HasPrefix(line, "| ") {
				continue
			}
			if rows++; rows > 1 && !name.MatchString(line) { // the first names the columns
				t.Errorf("no test shows it: %s", line)
			}
		}
		if rows < 10 {
			t.Errorf("%s: %d rows, want 10 or more", heading, rows)
		}
	}
}
