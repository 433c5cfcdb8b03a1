"""The report's style sheet: folds for a phone, light or dark by the reader's own setting, loads nothing."""

from infalign_jax.reporting import style

DARK = {"--ink": "#e6edf3", "--muted": "#9198a1", "--grid": "#30363d", "--paper": "#161b22"}


def _variables(dark):
    colors = {variable: DARK[variable] if dark else color for color, variable in style.THEME.items()}
    for index, look in enumerate(style.LOOKS.values()):
        colors[f"--look-{index}"] = look.dark if dark else look.color
    colors |= (
        {"--page": "#0d1117", "--soft": "#1c232c", "--good": "#3fb950"}
        if dark
        else {"--page": "#f6f8fa", "--soft": "#f3f5f8", "--good": "#1a7f37"}
    )
    return "".join(f"{name}:{color};" for name, color in colors.items())


RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--page);color:var(--ink);
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main,header,nav,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
h1{font-size:clamp(1.55rem,4.5vw,2.15rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .4em}
h2{font-size:1.28rem;letter-spacing:-.01em;margin:0 0 .5em}
h3{font-size:1rem;margin:1.4em 0 .5em}
p{margin:.4em 0 1em;max-width:78ch}
.lead{font-size:1.06rem}
.muted,figcaption,.note{color:var(--muted)}
code,pre,.completion,.prompt{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
nav{position:sticky;top:0;z-index:3;background:var(--page);padding-top:10px;padding-bottom:10px;
 overflow-x:auto;white-space:nowrap;border-bottom:1px solid var(--grid)}
nav a{color:var(--muted);text-decoration:none;margin-right:18px;font-size:.9rem}
nav a:hover,nav a:focus{color:var(--ink)}
section{background:var(--paper);border:1px solid var(--grid);border-radius:12px;padding:22px 24px;
 margin:20px 0;scroll-margin-top:56px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:20px 0 22px}
.tile{background:var(--paper);border:1px solid var(--grid);border-radius:12px;padding:14px 16px;min-width:0}
.tile b{display:block;font-size:1.65rem;line-height:1.2;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile span{display:block;font-size:.84rem;color:var(--muted);overflow-wrap:anywhere}
figure{margin:6px 0 0}
figure svg{display:block;width:100%;height:auto}
figcaption{font-size:.88rem;margin-top:10px;max-width:92ch}
.panels{display:grid;gap:18px 22px;grid-template-columns:repeat(auto-fit,minmax(min(100%,var(--least)),1fr));
 align-items:start}
.panels>div{max-width:680px}
.scroll{overflow-x:auto;margin:0 -24px;padding:0 24px}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{text-align:right;padding:7px 9px;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600;color:var(--muted);font-size:.82rem;vertical-align:bottom;white-space:normal}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);padding-left:0}
tbody tr:last-child td{border-bottom:0}
td small{display:block;color:var(--muted);font-size:.78rem}
td.best{font-weight:700}
.last-left th:last-child,.last-left td:last-child{text-align:left;padding-left:24px;width:75%;white-space:normal;min-width:17em}
.key th{text-align:left}
.key td{white-space:normal;text-align:left;overflow-wrap:anywhere}
.key td:first-child{white-space:nowrap}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em;vertical-align:baseline}
.verdict{border-radius:99px;padding:2px 9px;font-size:.8rem;background:var(--soft);color:var(--muted)}
.verdict.yes{color:var(--good);font-weight:600}
.prompt{font-size:.92rem;background:var(--soft);border-radius:8px;padding:9px 12px;margin:22px 0 4px}
.prompt,.completion{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
.sample{display:grid;grid-template-columns:11.5rem 1fr 15rem;gap:2px 16px;padding:9px 0;
 border-bottom:1px solid var(--grid)}
.sample>div{min-width:0}
.completion{font-size:.9rem}
.who{font-weight:600;font-size:.9rem;overflow-wrap:anywhere}
.meta{font-size:.8rem;color:var(--muted);font-variant-numeric:tabular-nums}
.meter{height:5px;border-radius:3px;background:var(--grid);margin:5px 0 4px;overflow:hidden}
.meter i{display:block;height:100%}
.cut{border:1px solid currentColor;border-radius:4px;padding:0 5px;font-size:.74rem}
details{margin-top:14px}
summary{cursor:pointer;color:var(--muted)}
pre{background:var(--soft);border-radius:8px;padding:14px 16px;overflow-x:auto;font-size:.82rem;line-height:1.5}
ul{padding-left:1.2em;margin:.4em 0}
footer{padding:6px 20px 40px;font-size:.85rem;color:var(--muted)}
@media(max-width:640px){
 main,header,nav,footer{padding-left:14px;padding-right:14px}
 section{padding:16px 14px;border-radius:10px}
 .scroll{margin:0 -14px;padding:0 14px}
 .tiles{grid-template-columns:1fr 1fr}
 .tile b{font-size:1.3rem}
 table{font-size:.84rem}
 .sample{grid-template-columns:1fr}
 .differences td:first-child{white-space:normal;min-width:8.5em}
}
@media print{nav{display:none}section{break-inside:avoid;border:0}body{background:#fff}}
"""


def css():
    """The whole style sheet as text."""
    light, dark = _variables(False), _variables(True)
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return f":root{{color-scheme:light dark;{light}}}\n{dark}\n{RULES.strip()}"
