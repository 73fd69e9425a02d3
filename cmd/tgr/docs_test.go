package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// docs are the pages that users read.
func docs(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	decisions, err := filepath.Glob("../../docs/decisions/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, p := range append(append(paths, decisions...), "../../README.md") {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		pages[p] = string(data)
	}
	return pages
}

var fence = regexp.MustCompile("(?ms)^ *```(\\w*)\n(.*?)^ *```")

// Every command line that the docs show is one that tgr, or make, takes.
func TestDocsCommands(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for page, text := range docs(t) {
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			if block[1] != "sh" {
				continue
			}
			for line := range strings.Lines(block[2]) {
				line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
				args := strings.Fields(strings.TrimPrefix(line, "bin/"))
				switch {
				case len(args) > 1 && args[0] == "tgr":
					checked++
					cmd, rest, err := newRootCmd().Find(args[1:])
					if err == nil {
						err = cmd.ParseFlags(rest)
					}
					if err == nil && cmd.Args != nil {
						err = cmd.Args(cmd, cmd.Flags().Args())
					}
					if err != nil {
						t.Errorf("%s: %s: %v", page, line, err)
					}
				case len(args) > 1 && args[0] == "make":
					checked++
					if !strings.Contains(string(makefile), "\n"+args[1]+":") {
						t.Errorf("%s: %s: the Makefile has no such target", page, line)
					}
				}
			}
		}
	}
	if checked < 10 {
		t.Errorf("found %d command lines: are the pages where they were?", checked)
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// Every link from page to page leads somewhere.
func TestDocsLinks(t *testing.T) {
	for page, text := range docs(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.Join(filepath.Dir(page), m[1])
			data, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if anchor := strings.TrimPrefix(m[2], "#"); anchor != "" && !slices.Contains(anchors(string(data)), anchor) {
				t.Errorf("%s: %s has no heading %s", page, m[1], anchor)
			}
		}
	}
}

// anchors are the headings of a page as GitHub links to them.
func anchors(page string) []string {
	var out []string
	for line := range strings.Lines(page) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			out = append(out, strings.ReplaceAll(strings.ToLower(strings.TrimSpace(title)), " ", "-"))
		}
	}
	return out
}

var variable = regexp.MustCompile("`([A-Z][A-Z0-9_]{3,})`")

// Every variable and setting that the docs name is one that the server reads.
func TestDocsSettings(t *testing.T) {
	known := []string{"TGR_CONFIG", "TGR_SERVER", "NO_COLOR"}
	keys := []string{"repositories"}
	for _, s := range settings() {
		known, keys = append(known, s.Env), append(keys, s.Key)
	}
	setup := docs(t)["../../docs/setup.md"]
	for _, m := range variable.FindAllStringSubmatch(setup, -1) {
		if !slices.Contains(known, m[1]) {
			t.Errorf("docs/setup.md names %s, which nothing reads", m[1])
		}
	}
	for _, block := range fence.FindAllStringSubmatch(setup, -1) {
		if block[1] != "yaml" {
			continue
		}
		var file map[string]any
		if err := yaml.Unmarshal([]byte(block[2]), &file); err != nil {
			t.Fatal(err)
		}
		for k := range file {
			if !slices.Contains(keys, k) {
				t.Errorf("docs/setup.md shows the setting %s, which there is not", k)
			}
		}
	}
}
