#!/usr/bin/env bash
# Copies what the page is made of into static/vendor, with the licences. Versions and integrity are pinned in package-lock.json;
# what was copied is part of the repository, so that neither building nor serving needs a network.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --ignore-scripts --no-audit --no-fund --silent
rm -rf static/vendor
mkdir -p static/vendor/fonts
cp node_modules/katex/dist/katex.min.js node_modules/katex/dist/katex.min.css static/vendor/
cp node_modules/katex/dist/fonts/*.woff2 static/vendor/fonts/
cp node_modules/dompurify/dist/purify.min.js static/vendor/
cp node_modules/marked/lib/marked.umd.js static/vendor/
cp node_modules/uplot/dist/uPlot.iife.min.js node_modules/uplot/dist/uPlot.min.css static/vendor/
for p in katex dompurify marked uplot; do
  for f in node_modules/$p/LICENSE*; do
    printf '%s\n\n' "== $p $(node -p "require('./node_modules/$p/package.json').version") =="
    cat "$f"
    echo
  done
done > static/vendor/LICENSES.txt
# Older browsers' fonts and source maps are left out.
sed -i 's/,url(fonts\/[A-Za-z0-9_-]*\.woff) format("woff"),url(fonts\/[A-Za-z0-9_-]*\.ttf) format("truetype")//g' static/vendor/katex.min.css
sed -i '/^\/\/# sourceMappingURL=/d' static/vendor/*.js
