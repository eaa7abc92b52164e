package server

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"
)

// The page and what it is made of come without a key, typed as what they are, and may do nothing but ask this server.
func TestDashboard(t *testing.T) {
	for _, key := range []string{"", "secret"} {
		a := serve(t, scripted(), func(c *Config) { c.APIKey = key })
		for path, contentType := range map[string]string{
			"/dashboard":             "text/html; charset=utf-8",
			"/dashboard/page.css":    "text/css; charset=utf-8",
			"/dashboard/page.mjs":    "text/javascript; charset=utf-8",
			"/dashboard/figures.mjs": "text/javascript; charset=utf-8",
		} {
			r := a.do("GET", path, "")
			if r.status != 200 || len(r.body) == 0 {
				t.Fatalf("%s: %d, %d bytes", path, r.status, len(r.body))
			}
			for name, want := range map[string]string{
				"Content-Type": contentType, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
				"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
			} {
				if got := r.header.Get(name); got != want {
					t.Errorf("%s: %s is %q, want %q", path, name, got, want)
				}
			}
			if h := a.do("HEAD", path, ""); h.status != 200 || len(h.body) != 0 {
				t.Errorf("HEAD %s: %d %q", path, h.status, h.body)
			}
			if key == "" {
				wantError(t, a.do("POST", path, "{}"), 405, "BadRequestError", "")
			}
		}
		// Not what lies beside them, nor the cluster.
		for path, want := range map[string]int{"/dashboard/": 404, "/dashboard/page.html": 404, "/dashboard/../cluster": 404, "/cluster": 200} {
			if key != "" {
				want = 401
			}
			if r := a.do("GET", path, ""); r.status != want {
				t.Errorf("%s with key %q: %d, want %d", path, key, r.status, want)
			}
		}
	}
}

// Every file of the page is served, and it asks for nothing else, and for what is there.
func TestDashboardIsWhole(t *testing.T) {
	text := map[string]string{}
	err := fs.WalkDir(dashboardFS, "dashboard", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := dashboardFS.ReadFile(path)
		text[strings.TrimPrefix(path, "dashboard/")] = string(b)
		return err
	})
	if err != nil || len(text) != len(dashboard) {
		t.Fatalf("%d files, %d served: %v", len(text), len(dashboard), err)
	}
	page, script := text["page.html"], text["page.mjs"]
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if dashboard["/"+m[1]] == nil && m[1] != "data:," {
			t.Errorf("the page wants %s", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`from "\./([^"]+)"`).FindAllStringSubmatch(script, -1) {
		if dashboard["/dashboard/"+m[1]] == nil {
			t.Errorf("its script wants %s", m[1])
		}
	}
	seen := 0
	for _, m := range regexp.MustCompile(`(?:at|table)\("([a-z-]+)"`).FindAllStringSubmatch(script, -1) {
		if seen++; !strings.Contains(page, `id="`+m[1]+`"`) {
			t.Errorf("its script wants an element %s", m[1])
		}
	}
	if seen < 10 {
		t.Errorf("%d elements", seen)
	}
}

// What could make text of the server more than text, or what the policy forbids, is not in the page.
func TestDashboardTakesTextAsText(t *testing.T) {
	for path, f := range dashboard {
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc", " style=", " onclick", " onload", "javascript:", "localStorage", "//cdn", "@import", "url("} {
			if strings.Contains(string(f.body), bad) {
				t.Errorf("%s has %s", path, bad)
			}
		}
		if path == "/dashboard" && regexp.MustCompile(`<script[^>]*>[^<]`).Match(f.body) {
			t.Errorf("%s has a script of its own", path)
		}
		for _, m := range regexp.MustCompile(`https?://[^"\s]+`).FindAllString(string(f.body), -1) {
			if m != "http://www.w3.org/2000/svg" {
				t.Errorf("%s speaks of %s", path, m)
			}
		}
	}
}
