package server

import (
	"embed"
	"fmt"

	"github.com/valyala/fasthttp"
)

// The page asks /cluster and /metrics itself, with the key where one is needed, so its files need none.
//
//go:embed dashboard
var dashboardFS embed.FS

// dashboardPolicy lets the page run and ask what this server sends, and nothing else.
const dashboardPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// dashboardFile is a file of the page as it is sent.
type dashboardFile struct {
	contentType string
	body        []byte
}

// dashboard is the page's files by their paths.
var dashboard = map[string]*dashboardFile{
	"/dashboard":             mustEmbed("page.html", "text/html; charset=utf-8"),
	"/dashboard/page.css":    mustEmbed("page.css", "text/css; charset=utf-8"),
	"/dashboard/page.mjs":    mustEmbed("page.mjs", "text/javascript; charset=utf-8"),
	"/dashboard/figures.mjs": mustEmbed("figures.mjs", "text/javascript; charset=utf-8"),
}

func mustEmbed(name, contentType string) *dashboardFile {
	body, err := dashboardFS.ReadFile("dashboard/" + name)
	if err != nil {
		panic(fmt.Sprintf("cannot find the dashboard's %s in the program: %v", name, err))
	}
	return &dashboardFile{contentType, body}
}

func (f *dashboardFile) serve(ctx *fasthttp.RequestCtx) {
	h := &ctx.Response.Header
	h.SetContentType(f.contentType)
	h.Set("Content-Security-Policy", dashboardPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache") // another version of the server has other files
	ctx.Response.SetBodyRaw(f.body)
}
