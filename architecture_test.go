// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestArchitecture sees that the map is true: files and rooms that it names exist, all rooms are on
// it, and none imports more than it may.
func TestArchitecture(t *testing.T) {
	page := document{"ARCHITECTURE.md", readDocument(t, "ARCHITECTURE.md")}
	files := docGoFile.FindAllString(page.text, -1)
	if len(files) < 40 {
		t.Errorf("%d names of files, want 40 or more", len(files))
	}
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("%s names %s: %v", page.path, file, err)
		}
	}
	listed := make(map[string]bool)
	for _, row := range tableRows(page.section("the-rooms")) {
		cells := strings.Split(strings.Trim(row, "|\n"), "|")
		room := strings.TrimSpace(cells[0])
		listed[room] = true
		for _, problem := range forbiddenImports(room, strings.TrimSpace(cells[2])) {
			t.Errorf("%s: %s", page.path, problem)
		}
	}
	entries, err := os.ReadDir("internal")
	if err != nil || len(entries) < 15 {
		t.Fatalf("%d rooms, %v", len(entries), err)
	}
	for _, entry := range entries {
		if room := "internal/" + entry.Name(); !listed[room] {
			t.Errorf("%s has no row for %s", page.path, room)
		}
	}
}

// forbiddenImports tells of imports in the files of a room that allowed does not name: rooms with
// commas between them, "any room", or "the root". Tests may import any room, and not the root.
func forbiddenImports(room, allowed string) (problems []string) {
	const root = "github.com/seed-017344ad/sealedchat"
	names := strings.Split(allowed+", fault", ", ")
	found := 0
	err := filepath.WalkDir(room, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		found++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			name, isRoom := strings.CutPrefix(imported, root+"/internal/")
			name, _, _ = strings.Cut(name, "/")
			anyRoom := allowed == "any room" || strings.HasSuffix(path, "_test.go")
			switch {
			case allowed == "the root":
			case imported == root:
				problems = append(problems, path+" imports the root")
			case isRoom && "internal/"+name != room && !anyRoom && !slices.Contains(names, name):
				problems = append(problems, path+" imports "+imported)
			}
		}
		return nil
	})
	if err != nil || found == 0 {
		problems = append(problems, fmt.Sprintf("%s has %d Go files, %v", room, found, err))
	}
	return problems
}

// TestForbiddenImports shows that TestArchitecture finds them.
func TestForbiddenImports(t *testing.T) {
	for _, c := range []struct {
		room, allowed string
		finds         bool
	}{
		{"internal/hybrid", "envelope, erase, locked", false},
		{"internal/hybrid", "any room", false},
		{"internal/hybrid", "envelope, erase", true},
		{"internal/hybrid", "", true},
		{"internal/interop", "the root", false},
		{"internal/interop", "any room", true}, // they import the root
		{"internal/testdata", "", true},        // there is none
	} {
		if found := len(forbiddenImports(c.room, c.allowed)) > 0; found != c.finds {
			t.Errorf("%s that may import %q: found %v", c.room, c.allowed, found)
		}
	}
}
